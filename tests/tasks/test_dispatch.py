"""Stages start when those before them are done; a failed stage holds up only the stages that depend on it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.schemas.objects import WorkQueueStatus
from prefect.logging import disable_run_logger
from prefect.states import Completed, Scheduled
from prefect.testing.utilities import prefect_test_harness

from tasks import dispatch
from tasks.dispatch import Outcome, final_state, run_stages
from tasks.graph import Stage
from tasks.reproduce import StageFailed

GPU = Stage("a", gpu=True, frozen=False, upstream=())


def graph(**upstream: tuple[str, ...]) -> dict[str, Stage]:
    return {name: Stage(name, False, name == "frozen", others) for name, others in upstream.items()}


@pytest.fixture(scope="module")
def server() -> Any:
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture
def ran(server: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the stages that were given to workers, in the order in which they ended. The stage b fails."""
    names: list[str] = []
    both = threading.Barrier(2, timeout=60)

    def run(stage: Stage, folder: Path, force: bool) -> tuple[str, str]:
        if stage.name in ("b", "c"):
            both.wait()  # neither gets past this unless both have started
        if stage.name == "b":
            raise StageFailed("b has no pairs")
        names.append(stage.name)
        return "ran", dispatch.here()

    monkeypatch.setattr(dispatch, "dispatch", run)
    monkeypatch.setattr(dispatch, "has_remote", lambda: False)
    monkeypatch.setattr(dispatch.reproduce, "restore", lambda folder, name, remote: "")
    return names


def outcomes(found: dict[str, Stage], changed: set[str], force: bool = False) -> dict[str, Outcome]:
    @flow
    def run() -> Any:
        return run_stages(found, list(found), changed, Path("."), force)

    answer: dict[str, Outcome] = run()
    return answer


@pytest.mark.prefect
def test_independent_stages_run_together_and_a_failure_stops_only_what_depends_on_it(ran: list[str]) -> None:
    found = outcomes(graph(frozen=(), a=("frozen",), b=("a",), c=("a",), d=("b",), e=("d",), f=("c",)), {"a"})
    assert {name: outcome.how for name, outcome in found.items()} == {
        "a": "ran", "b": "failed", "c": "ran", "d": "skipped", "e": "skipped", "f": "ran",
    }  # fmt: skip
    assert found["b"].message == "b has no pairs"
    assert ran == ["a", "c", "f"]


@pytest.mark.prefect
def test_a_stage_runs_if_it_or_a_stage_before_it_changed(ran: list[str]) -> None:
    found = outcomes(graph(a=(), x=("a",), y=("x",)), {"x"})
    assert {name: outcome.how for name, outcome in found.items()} == {"a": "unchanged", "x": "ran", "y": "ran"}
    assert {outcome.how for outcome in outcomes(graph(a=(), x=("a",)), set()).values()} == {"unchanged"}
    assert {outcome.how for outcome in outcomes(graph(a=(), x=("a",)), set(), force=True).values()} == {"ran"}


class Client:
    """A server whose stage run stays as it is, and whose queue has, or has no, worker."""

    def __init__(self, states: list[Any], status: WorkQueueStatus) -> None:
        self.states, self.status, self.set = states, status, ()

    def read_flow_run(self, run: Any) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(state=state)

    def read_work_queue_by_name(self, name: str, work_pool_name: str) -> Any:
        return SimpleNamespace(status=self.status)

    def set_flow_run_state(self, run: Any, state: Any, force: bool) -> None:
        self.set = (state.type, force)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of waiting passes at once."""
    now = [0.0]

    def passes(seconds: float) -> bool:
        now[0] += seconds
        return False

    monkeypatch.setattr(dispatch, "STOP", SimpleNamespace(wait=passes))
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: now[0])


def test_a_stage_that_no_worker_takes_ends(clock: None) -> None:
    client: Any = Client([Scheduled()], WorkQueueStatus.NOT_READY)
    with pytest.raises(StageFailed, match="no worker has asked for work of the queue 'gpu' for 120 s\n  fix: make up"):
        final_state(client, "id", GPU)  # type: ignore[arg-type]
    assert client.set == ("CANCELLED", True)


@pytest.mark.parametrize("status", [WorkQueueStatus.READY, WorkQueueStatus.PAUSED])
def test_a_busy_worker_a_paused_queue_and_a_silent_server_are_waited_for(clock: None, status: WorkQueueStatus) -> None:
    away = httpx.ConnectError("no answer")
    client: Any = Client([Scheduled()] * 1000 + [away] * 1000 + [Completed()], status)
    with disable_run_logger():
        assert final_state(client, "id", GPU).is_completed()  # type: ignore[arg-type]
