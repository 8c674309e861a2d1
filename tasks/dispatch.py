"""A run's stages: each at once when all it waits for is done, here if nothing must be computed, else on a worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from lpo.errors import LpoError
from tasks import reproduce
from tasks.graph import Stage
from tasks.process import STOP, Stopped
from tasks.reproduce import StageFailed, Transient
from tasks.retried import RETRIED
from tasks.workspace import has_remote, here, place_of

POOL = "lpo"
CHILDREN: list[UUID] = []  # stage runs that this process has sent to workers
SENT: set[str] = set()  # stages whose results this run knows to be in the remote


@dataclass(frozen=True)
class Outcome:
    how: str  # ran | fetched | unchanged | failed | skipped
    minutes: float
    message: str = ""


def check_workers(stages: Sequence[Stage]) -> None:
    """Everything on the server that these stages need.

    Raises:
        LpoError: if a queue or the limit of the GPU is missing or stopped.
    """
    with get_client(sync_client=True) as client:
        for queue in sorted({stage.queue for stage in stages}):
            try:
                found = client.read_work_queue_by_name(queue, work_pool_name=POOL)
            except ObjectNotFound:
                raise LpoError(f"no queue {queue!r} in the work pool {POOL!r}", "Prefect server", "make up") from None
            if found.is_paused:
                remedy = f"prefect work-queue resume {queue} --pool {POOL}"
                raise LpoError(f"the queue {queue!r} is paused", "Prefect server", remedy)
        if any(stage.gpu for stage in stages):
            try:
                client.read_global_concurrency_limit_by_name("gpu")
            except ObjectNotFound:
                raise LpoError("no global concurrency limit 'gpu'", "Prefect server", "make up") from None


def run_stages(
    graph: Mapping[str, Stage], selected: Sequence[str], changed: set[str], folder: Path, force: bool
) -> dict[str, Outcome]:
    """Bring every selected stage up to date; stages that do not wait for each other go at once.

    A stage that is not in `changed`, and whose predecessors did nothing, is up to date. What a failed stage holds up is
    skipped, the rest goes on. When this run is cancelled, its stage runs are cancelled too.
    """
    outcomes: dict[str, Outcome] = {}
    running: dict[str, Any] = {}
    started: dict[str, float] = {}
    waiting = [name for name in selected if not graph[name].frozen]
    try:
        while waiting or running:
            for name in list(waiting):
                needs = [other for other in graph[name].upstream if other in waiting or other in started]
                if any(outcomes[other].how in ("failed", "skipped") for other in needs if other in outcomes):
                    outcomes[name] = Outcome("skipped", 0.0)
                elif all(other in outcomes for other in needs):
                    moved = any(outcomes[other].how != "unchanged" for other in needs)
                    stale = force or moved or name in changed
                    started[name] = time.monotonic()
                    running[name] = advance.with_options(name=name).submit(graph[name], folder, stale, force)
                else:
                    continue
                waiting.remove(name)
                started.setdefault(name, time.monotonic())
            for name, future in list(running.items()):
                if future.wrapped_future.done():
                    del running[name]
                    outcomes[name] = _outcome(future, (time.monotonic() - started[name]) / 60)
            time.sleep(0.05)
    except BaseException:
        STOP.set()
        cancel_children()
        raise
    return outcomes


def _outcome(future: Any, minutes: float) -> Outcome:
    try:
        return Outcome(future.result(), minutes)
    except Exception as error:
        return Outcome("failed", minutes, str(error))


@task(name="stage", **RETRIED)
def advance(stage: Stage, folder: Path, stale: bool, force: bool) -> str:
    """One stage: nothing, or its result out of the cache, or a run on a worker of its queue."""
    if not stale:
        return "unchanged"
    remote = has_remote()
    if not force and (found := reproduce.restore(folder, stage.name, remote)):
        return found
    if remote:  # what the worker's copy of this workspace will look for
        for other in stage.upstream:
            if other not in SENT:
                reproduce.push(folder, other)
                SENT.add(other)
    outcome, clone = dispatch(stage, folder, force)
    SENT.add(stage.name)  # by the worker
    if clone != here() and not reproduce.restore(folder, stage.name, remote):
        raise StageFailed(f"{stage.name} was done in {clone}, but its result did not come through the remote")
    return outcome


def dispatch(stage: Stage, folder: Path, force: bool) -> tuple[str, str]:
    """(how, clone of the worker): run the stage on a worker of its queue, and wait.

    Raises:
        Transient: if the worker was lost.
        StageFailed: with the stage's own message.
    """
    logger = get_run_logger()
    parameters = {"name": stage.name, "place": asdict(place_of(folder)), "force": force}
    run: Any = run_deployment(f"stage/{stage.queue}", parameters=parameters, timeout=0, flow_run_name=stage.name)
    CHILDREN.append(run.id)
    logger.info("%s waits for a worker of the queue %s", stage.name, stage.queue)
    with get_client(sync_client=True) as client:
        while True:
            if STOP.wait(1.0):  # each question costs the server a hundredth of a second
                raise Stopped
            try:
                state = client.read_flow_run(run.id).state
            except httpx.TransportError as error:
                logger.warning("the Prefect server does not answer (%s); the stage goes on", error)
                continue
            if state is not None and state.is_final():
                break
    message = state.message or ""
    if state.is_completed():
        how, _, clone = message.partition(" in ")
        return how, clone
    if state.is_crashed():
        raise Transient(f"{stage.name}: the worker was lost ({message})")
    raise StageFailed(message)


def cancel_children(seconds: float = 12.0) -> None:
    """Cancel the stage runs that are not over, and wait for their end: the workspace must be quiet after that."""
    with get_client(sync_client=True) as client:
        open_runs = [run for run in CHILDREN if not _over(client, run)]
        for run in open_runs:
            client.set_flow_run_state(run, Cancelling(message="the run that it belongs to was stopped"))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(_over(client, run) for run in open_runs):
            time.sleep(0.3)


def _over(client: Any, run: UUID) -> bool:
    state = client.read_flow_run(run).state
    return state is not None and state.is_final()
