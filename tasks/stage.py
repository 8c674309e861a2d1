"""One stage on a worker: fetch its inputs, run its command, push its results. DVC decides whether it must run."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

from tasks import reproduce, tracked
from tasks.graph import before, find, read_graph
from tasks.retried import RETRIED
from tasks.workspace import Place, has_remote, locked, place_here

LEASE = 60.0  # seconds after which the GPU slot of a lost worker is free again


@task(name="fetch inputs", **RETRIED)
def fetch_inputs(folder: Path, name: str) -> None:
    """Fetch the outputs of the stages that this one depends on."""
    graph = read_graph(folder)
    needed = before(graph, [name]) - {name}
    reproduce.pull(folder, [other for other in graph if other in needed and not graph[other].frozen])


@task(name="reproduce", **RETRIED)
def run_stage(folder: Path, name: str, gpu: bool, force: bool) -> str:
    """`dvc repro --single-item`, with its output in the log. The GPU slot is held only while the command runs."""
    logger = get_run_logger()
    slot = concurrency("gpu", occupy=1, lease_duration=LEASE, strict=True, raise_on_lease_renewal_failure=False)
    with slot if gpu else nullcontext():
        return reproduce.repro(folder, name, force, logger.info, progress(name))


@task(name="push results", **RETRIED)
def push_results(folder: Path, name: str) -> None:
    reproduce.push(folder, name)


def work(name: str, place: Place, force: bool) -> str:
    """Run the stage in the folder of `place`, or in a copy of it. Returns "ran", "fetched" or "unchanged"."""
    logger = get_run_logger()
    with place_here(place, name) as (folder, carried):
        stage = find(read_graph(folder), name)
        # A stage run whose parent is gone may still be at work here; two of them would compute the same result twice.
        lock = folder / f".prefect/{name}.lock"
        with locked(lock, str(flow_run.name), lambda holder: logger.info("waiting for stage run %s to end", holder)):
            if carried:
                tracked.match(folder)
                fetch_inputs(folder, name)
            outcome = run_stage(folder, name, stage.gpu, force)
            if has_remote():
                push_results(folder, name)
    return outcome


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
