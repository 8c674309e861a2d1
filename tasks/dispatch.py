"""The stages of a run. Prefect starts each when those before it are done; a stage that must run goes to a worker."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, State, WorkerStatus, WorkQueueStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Cancelled, Cancelling

from lpo.errors import LpoError
from lpo.timings.gpus import Use
from tasks import reproduce
from tasks.gpus import read_use
from tasks.graph import Stage
from tasks.process import STOP, Stopped
from tasks.reproduce import StageFailed, Transient
from tasks.retried import RETRIED
from tasks.workspace import has_remote, here, place_of

POOL = "lpo"
NO_WORKER = 120.0  # seconds that a stage run waits for a worker while none asks for work
SENT: set[str] = set()  # stages whose results this run has put in the remote
# (stage, share): the folder of its parts, which this run has in the remote, and what a GPU did for them
MADE: dict[tuple[str, str], tuple[str, Use | None]] = {}


@dataclass(frozen=True)
class Outcome:
    how: str  # ran | fetched | unchanged | failed | skipped
    minutes: float | None = None  # None where nothing was measured
    message: str = ""
    uses: tuple[Use, ...] = ()  # of GPUs, by this run


def check_workers(stages: Sequence[Stage]) -> None:
    """Check that the server has everything that these stages need.

    Raises:
        LpoError: if a queue is missing or paused, or the limit `gpu` is missing.
    """
    with get_client(sync_client=True) as client:
        for queue in sorted({stage.queue for stage in stages}):
            try:
                found = client.read_work_queue_by_name(queue, work_pool_name=POOL)
            except ObjectNotFound:
                raise LpoError(f"the work pool {POOL!r} has no queue {queue!r}", "Prefect server", "make up") from None
            if found.is_paused:
                remedy = f"prefect work-queue resume {queue} --pool {POOL}"
                raise LpoError(f"the queue {queue!r} is paused", "Prefect server", remedy)
        if any(stage.gpu for stage in stages):
            try:
                client.read_global_concurrency_limit_by_name("gpu")
            except ObjectNotFound:
                raise LpoError("there is no global concurrency limit 'gpu'", "Prefect server", "make up") from None


def run_stages(
    graph: Mapping[str, Stage], selected: Sequence[str], changed: set[str], folder: Path, force: bool
) -> dict[str, Outcome]:
    """Bring every selected stage up to date, in the order of the graph; independent stages run at the same time.

    A stage runs if it is in `changed`, if a stage before it did anything, or with `force`. When a stage fails, Prefect
    does not start those that wait for it, and the others continue. When this run is cancelled, so are its stage runs.
    """
    futures: dict[str, Any] = {}
    for name in (name for name in graph if name in selected and not graph[name].frozen):
        upstream = [futures[other] for other in graph[name].upstream if other in futures]
        stale = force or name in changed
        futures[name] = advance.with_options(name=name).submit(graph[name], folder, stale, force, upstream)
    try:
        wait(list(futures.values()))
    except BaseException:
        STOP.set()
        cancel_children()
        raise
    return {name: _outcome(future.state) for name, future in futures.items()}


def _outcome(state: State[Any]) -> Outcome:
    if state.is_completed():
        found = state.result()
        assert isinstance(found, Outcome)
        return found
    if state.name == "NotReady":  # a stage before it failed
        return Outcome("skipped")
    return Outcome("failed", message=str(state.result(raise_on_failure=False)))


@task(name="stage", **RETRIED)
def advance(stage: Stage, folder: Path, stale: bool, force: bool, upstream: Sequence[Outcome]) -> Outcome:
    """One stage: leave it alone, restore its result from the cache, or run it on a worker of its queue."""
    start = time.monotonic()
    uses: list[Use | None] = []

    def done(how: str) -> Outcome:
        return Outcome(how, (time.monotonic() - start) / 60, uses=tuple(use for use in uses if use is not None))

    if not (stale or any(other.how != "unchanged" for other in upstream)):
        return done("unchanged")
    remote = has_remote()
    if not force and (found := reproduce.restore(folder, stage.name, remote)):
        return done(found)
    if remote:  # the worker's copy of this workspace fetches its inputs from there
        for other in stage.upstream:
            if other not in SENT:
                reproduce.push(folder, other)
                SENT.add(other)
        uses += make_shares(stage, folder)
    how, clone, use = dispatch(stage, folder, force)
    uses.append(use)
    SENT.add(stage.name)  # by the worker
    if clone != here() and not reproduce.restore(folder, stage.name, remote):
        raise StageFailed(f"{stage.name} ran in {clone}, but its result did not arrive through the remote")
    return done(how)


def make_shares(stage: Stage, folder: Path) -> list[Use | None]:
    """Let workers make the stage's parts, a share for each slot of the limit `gpu`; nothing if the stage has no parts.

    Returns what GPUs did for each share.

    A single worker makes no shares: it runs the whole stage on all of its GPUs.
    What this run has made already, before it was retried, is not asked for again.

    Raises:
        Transient: if a worker was lost; the other shares are done then.
        StageFailed: if a share failed, or no worker took it.
    """
    count = slots_of_workers() if stage.shared else 0
    if count < 2:
        return []
    shares = [share for number in range(count) if (stage.name, share := f"{number + 1}/{count}") not in MADE]
    runs = {share: start_run(stage, folder, share=share) for share in shares}
    states: dict[str, State[Any]] = {}
    with get_client(sync_client=True) as client:
        try:
            for share, run in runs.items():
                states[share] = final_state(client, run, stage)
        except StageFailed:  # no worker took this one, so none would take the others
            for share in runs.keys() - states.keys():
                client.set_flow_run_state(runs[share], Cancelled(message="no worker took it"), force=True)
            raise
    MADE.update({(stage.name, share): read_use(str(s.message)) for share, s in states.items() if s.is_completed()})
    for kind in (StageFailed, Transient):
        for share, state in states.items():
            if isinstance(error := failure(f"{stage.name} {share}", state), kind):
                raise error
    made = [MADE[stage.name, f"{number + 1}/{count}"] for number in range(count)]
    if len(folders := {folder for folder, _ in made}) > 1:
        get_run_logger().warning(
            "the workers differ in their device or their code: they made parts of %s in %s. Parts that do not fit are "
            "made again", stage.name, ", ".join(sorted(folders)),
        )  # fmt: skip
    return [use for _, use in made]


def slots_of_workers() -> int:
    """How many shares can be made at once: the slots of the limit `gpu`, or 1 if fewer than two workers are there."""
    with get_client(sync_client=True) as client:
        workers = client.read_workers_for_work_pool(POOL)
        if sum(worker.status == WorkerStatus.ONLINE for worker in workers) < 2:
            return 1
        return client.read_global_concurrency_limit_by_name("gpu").limit


def dispatch(stage: Stage, folder: Path, force: bool) -> tuple[str, str, Use | None]:
    """Run the stage on a worker of its queue.

    Returns "ran", "fetched" or "unchanged", the worker's clone, and what its GPUs did.

    Raises:
        Transient: if the worker was lost.
        StageFailed: if the stage failed, with its own message, or if no worker took it.
    """
    run = start_run(stage, folder, force=force)
    with get_client(sync_client=True) as client:
        state = final_state(client, run, stage)
    if error := failure(stage.name, state):
        raise error
    return str(state.name).lower(), *read_use(str(state.message))  # see flows/stage.py


def start_run(stage: Stage, folder: Path, **parameters: Any) -> UUID:
    """Give the stage, or a share of it, to the workers of its queue."""
    name = " ".join(filter(None, [stage.name, parameters.get("share")]))
    parameters |= {"name": stage.name, "place": asdict(place_of(folder))}
    run: Any = run_deployment(f"stage/{stage.queue}", parameters=parameters, timeout=0, flow_run_name=name)
    get_run_logger().info("%s waits for a worker of the queue %s", name, stage.queue)
    return UUID(str(run.id))


def failure(name: str, state: State[Any]) -> Transient | StageFailed | None:
    """Why a stage run did not end well; None if it did."""
    if state.is_completed():
        return None
    if state.is_crashed():
        return Transient(f"{name}: the worker was lost ({state.message})")
    return StageFailed(state.message or f"{name}: {state.name}")


def final_state(client: SyncPrefectClient, run: UUID, stage: Stage) -> State[Any]:
    """The state in which the stage run ends. A server that does not answer for a while changes nothing.

    Raises:
        StageFailed: if no worker asks for work of its queue for NO_WORKER seconds; the stage run is cancelled.
        Stopped: if this run is being cancelled.
    """
    served = time.monotonic()
    while not STOP.wait(1.0):
        try:
            state = client.read_flow_run(run).state
            if state is not None and state.is_final():
                return state
            waits = state is None or state.is_scheduled()
            queue = client.read_work_queue_by_name(stage.queue, work_pool_name=POOL) if waits else None
        except httpx.TransportError as error:
            get_run_logger().warning("the Prefect server does not answer (%s); the stage continues", error)
            continue
        if queue is None or queue.status != WorkQueueStatus.NOT_READY:
            served = time.monotonic()
        elif time.monotonic() > served + NO_WORKER:
            client.set_flow_run_state(run, Cancelled(message="no worker took it"), force=True)
            raise StageFailed(
                f"{stage.name}: no worker has asked for work of the queue {stage.queue!r} for {NO_WORKER:.0f} s\n"
                "  fix: make up, or start a worker for this queue; then run again"
            )
    raise Stopped


def cancel_children(seconds: float = 12.0) -> None:
    """Cancel the stage runs of this run and wait until they have ended: then nothing works in the workspace."""
    with get_client(sync_client=True) as client:
        for run in _open_children(client):
            client.set_flow_run_state(run, Cancelling(message="the run that it belongs to was stopped"))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and _open_children(client):
            time.sleep(0.3)


def _open_children(client: SyncPrefectClient) -> list[UUID]:
    unfinished = {"type": {"not_any_": sorted(TERMINAL_STATES)}}
    mine = {"parent_flow_run_id": {"any_": [flow_run.id]}, "state": unfinished}
    return [run.id for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(mine))]
