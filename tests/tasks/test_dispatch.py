"""Stages start when those before them are done; a failed stage holds up only the stages that depend on it."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect import flow
from prefect.client.schemas.objects import WorkerStatus, WorkQueueStatus
from prefect.logging import disable_run_logger
from prefect.states import Completed, Crashed, Failed, Scheduled
from prefect.testing.utilities import prefect_test_harness

from lpo.timings.gpus import Use
from tasks import dispatch
from tasks.dispatch import Outcome, final_state, make_shares, run_stages
from tasks.gpus import with_use
from tasks.graph import Stage
from tasks.reproduce import StageFailed, Transient

GPU = Stage("a", gpu=True, frozen=False, upstream=())
SHARED = Stage("score", gpu=True, frozen=False, upstream=(), shared=True)


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
        return "ran", dispatch.here(), None

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


@pytest.fixture
def workers() -> list[Any]:
    """Those that the server knows: two are online."""
    online, offline = WorkerStatus.ONLINE, WorkerStatus.OFFLINE
    return [SimpleNamespace(status=status) for status in (online, online, offline)]


@pytest.fixture
def asked(workers: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shares that workers were asked for, where the limit `gpu` has three slots."""
    shares: list[str] = []
    client = SimpleNamespace(
        read_workers_for_work_pool=lambda pool: workers,
        read_global_concurrency_limit_by_name=lambda name: SimpleNamespace(limit=3),
        set_flow_run_state=lambda run, state, force: shares.append(f"{run} {state.type.value}"),
    )

    def start(stage: Stage, folder: Path, share: str) -> str:
        shares.append(share)
        return share

    monkeypatch.setattr(dispatch, "get_client", lambda sync_client: nullcontext(client))
    monkeypatch.setattr(dispatch, "start_run", start)
    monkeypatch.setattr(dispatch, "MADE", {})
    return shares


def test_a_lost_share_is_asked_for_again_when_the_others_are_made(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uses = [Use(1, 60.0, 5.0), Use(1, 30.0), None]  # by share: one GPU tells its energy, one does not, and a CPU
    made = [Completed(name="Made", message=with_use(".checkpoints/score/k", use)) for use in uses]
    states = {"1/3": [made[0]], "2/3": [Crashed(message="killed"), made[1]], "3/3": [made[2]]}
    monkeypatch.setattr(dispatch, "final_state", lambda client, run, stage: states[run].pop(0))
    with pytest.raises(Transient, match="score 2/3: the worker was lost"):
        make_shares(SHARED, Path())
    assert make_shares(SHARED, Path()) == uses, "those of the first try count too"
    assert make_shares(GPU, Path()) == []  # it has no parts
    assert asked == ["1/3", "2/3", "3/3", "2/3"] and not any(states.values())


def test_a_share_that_fails_ends_the_stage_and_shares_that_nobody_takes_are_cancelled(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(client: Any, run: str, stage: Stage) -> Any:
        if run == "2/3":
            raise StageFailed("no worker")
        return Failed(message="no pairs")

    monkeypatch.setattr(dispatch, "final_state", ended)
    with pytest.raises(StageFailed, match="no worker"):
        make_shares(SHARED, Path())
    assert sorted(asked[3:]) == ["2/3 CANCELLED", "3/3 CANCELLED"]
    monkeypatch.setattr(dispatch, "final_state", lambda *_: Failed(message="no pairs"))
    with pytest.raises(StageFailed, match="no pairs"):
        make_shares(SHARED, Path())


def test_a_single_worker_runs_the_whole_stage(workers: list[Any], asked: list[str]) -> None:
    workers.pop(0)
    make_shares(SHARED, Path())
    assert asked == []
