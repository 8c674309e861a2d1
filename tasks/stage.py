"""One stage on a worker: fetch its inputs, run its command, push its results. DVC decides whether it must run.

Or one share of a stage whose parts several workers make: then the parts go to the remote, and the run of the stage
itself, which comes last, fetches them all and makes the result.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

from lpo.timings.gpus import Use, measured, visible
from tasks import gpus, reproduce, tracked
from tasks.gpus import Gpus
from tasks.graph import Stage, before, find, read_graph
from tasks.process import Stopped
from tasks.reproduce import Transient
from tasks.retried import RETRIED
from tasks.workspace import ROOT, Place, has_remote, locked, place_here

LEASE = 60.0  # seconds after which the GPU slots of a lost worker are free again
SEND_EVERY = 60.0  # seconds between two looks for new parts of a share


@task(name="fetch inputs", **RETRIED)
def fetch_inputs(folder: Path, name: str) -> None:
    """Fetch the outputs of the stages that this one depends on."""
    graph = read_graph(folder)
    needed = before(graph, [name]) - {name}
    reproduce.pull(folder, [other for other in graph if other in needed and not graph[other].frozen])


@task(name="reproduce", **RETRIED)
def run_stage(folder: Path, stage: Stage, force: bool) -> tuple[str, Use | None]:
    """`dvc repro --single-item`, with its output in the log, on all GPUs of this machine if the stage uses them.

    Returns what it did, and what GPUs did for it if it ran.
    """
    logger = get_run_logger()
    show = progress(stage.name)
    with gpu_slots(stage) as held, measured(held.names) as meter:
        environment = own_code(folder) | held.environment
        outcome = reproduce.repro(folder, stage.name, force, logger.info, show, environment, held.files)
    return outcome, meter.use if outcome == "ran" else None


@task(name="make parts", **RETRIED)
def run_share(folder: Path, stage: Stage, share: str) -> tuple[str, Use | None]:
    """`lpo STAGE --share K/N` on one GPU. Parts go to the remote as they are made.

    Returns the folder that holds them, and what the GPU did. Parts that the remote has are fetched first, and are not
    made again.
    """
    logger, name = get_run_logger(), stage.name
    parts: list[str] = []

    def on_line(line: str) -> None:
        logger.info(line)
        if found := re.fullmatch(r"parts in (\S+)", line):
            parts.append(found[1])

    reproduce.pull_parts(folder, name, share)
    with gpu_slots(stage, 1) as held, measured(held.names) as meter, sending(folder, name, share, parts):
        environment = own_code(folder) | held.environment
        reproduce.make_share(folder, name, share, on_line, progress(name), environment, held.files)
    for made in parts[-1:]:
        reproduce.push_parts(folder, name, made, share)
    return "".join(parts[-1:]), meter.use


@contextmanager
def sending(folder: Path, name: str, share: str, parts: list[str]) -> Iterator[None]:
    """Inside, new parts go to the remote every minute, so that little is lost with this machine.

    parts: the folder that holds them, as its last element, once it is known.
    """
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(SEND_EVERY):
            for made in parts[-1:]:
                try:
                    reproduce.push_parts(folder, name, made, share)
                except (Transient, reproduce.StageFailed, Stopped):
                    continue  # they are sent at the end, and what is wrong is told then

    threading.Thread(target=send, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


@contextmanager
def gpu_slots(stage: Stage, most: int | None = None) -> Iterator[Gpus]:
    """Hold GPUs of this machine for a command, and as many slots of the limit `gpu`: all, or at most `most`.

    A stage takes no more GPUs than the limit has slots. On a machine without a GPU it takes one slot.
    """
    if not stage.gpu:
        yield Gpus((), ())
        return
    logger, names = get_run_logger(), visible()
    with get_client(sync_client=True) as client:
        slots = client.read_global_concurrency_limit_by_name("gpu").limit
    wanted = min(len(names), most or len(names))
    if wanted > slots:
        logger.warning("%d GPUs are not used: the limit gpu is %d; see `prefect gcl update gpu`", wanted - slots, slots)
    with gpus.held(names, min(wanted, slots), lambda: logger.info("waiting for a GPU of this machine")) as held:
        occupied = max(1, len(held.names))
        with concurrency("gpu", occupied, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False):
            if held.names:
                logger.info("on %s", ", ".join(held.names))
            yield held


def own_code(folder: Path) -> dict[str, str]:
    """Variables that make commands in a copy of the workspace run the copy's code, which may be of another commit."""
    if folder == ROOT:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@task(name="fetch parts", **RETRIED)
def fetch_parts(folder: Path, name: str) -> None:
    """Fetch the parts that workers made."""
    reproduce.pull_parts(folder, name)


@task(name="push results", **RETRIED)
def push_results(folder: Path, name: str) -> None:
    reproduce.push(folder, name)


def work(name: str, place: Place, force: bool, share: str | None = None) -> tuple[str, Use | None]:
    """Run the stage in the folder of `place`, or in a copy of it.

    Returns "ran", "fetched" or "unchanged", of a share the folder that holds its parts; and what GPUs did for it.

    Args:
        share: K/N; make only this share of the stage's parts.
    """
    logger = get_run_logger()
    label = name if share is None else f"{name}-{share.partition('/')[0]}"
    with place_here(place, label) as (folder, carried):
        stage = find(read_graph(folder), name)
        # A stage run whose parent is gone may still be at work here; two of them would compute the same result twice.
        lock = folder / f".prefect/{label}.lock"
        with locked(lock, str(flow_run.name), lambda holder: logger.info("waiting for stage run %s to end", holder)):
            if carried:
                tracked.match(folder)
                fetch_inputs(folder, name)
            if share is not None:
                return run_share(folder, stage, share)
            if stage.shared and has_remote():
                fetch_parts(folder, name)
            outcome, use = run_stage(folder, stage, force)
            if has_remote():
                push_results(folder, name)
    return outcome, use


def progress(name: str) -> Callable[[float, str], None]:
    """A function that shows the stage's progress bar as a progress artifact, at most twice a second."""
    artifact: Any = None
    last = 0.0

    def show(percent: float, text: str) -> None:
        nonlocal artifact, last
        if time.monotonic() - last < 0.5 and percent < 100:
            return
        last = time.monotonic()
        if artifact is None:
            artifact = create_progress_artifact(percent, key=f"progress-{name}", description=f"stage {name}")
        else:
            update_progress_artifact(artifact, progress=percent, description=f"stage {name}: {text}")

    return show
