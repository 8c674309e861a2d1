"""The flow `stage`: one stage, or a share of its parts, on whichever worker takes it: stage/cpu and stage/gpu."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed

from tasks.gpus import with_use
from tasks.stage import work
from tasks.workspace import Place, here, place_of, run_workspace


@flow(name="stage")
def stage(name: str, place: dict[str, str] | None = None, force: bool = False, share: str | None = None) -> Any:
    """Bring one stage up to date.

    The final state is named Ran, Fetched or Unchanged, and its message is the worker's clone. Of a share it is named
    Made, and its message is the folder of the parts. A second line says what GPUs did.

    Args:
        name: a stage of dvc.yaml.
        place: where the run works that the stage belongs to. Leave it out to work in the worker's own clone.
        force: run the stage even if nothing changed.
        share: K/N, to make only the K-th of N shares of the stage's parts and send them to the remote.
    """
    there = Place(**place) if place else place_of(run_workspace([]))
    done, use = work(name, there, force, share)
    if share is not None:
        return Completed(name="Made", message=with_use(done, use))
    return Completed(name=done.capitalize(), message=with_use(here(), use))
