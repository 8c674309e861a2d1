"""The flow `stage`: one stage, on whichever worker takes it. Deployed as stage/cpu and stage/gpu."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed

from tasks.stage import work
from tasks.workspace import Place, here, place_of, run_workspace


@flow(name="stage", flow_run_name="{name}")
def stage(name: str, place: dict[str, str] | None = None, force: bool = False) -> Any:
    """Bring one stage up to date.

    The final state is named Ran, Fetched or Unchanged, and its message is the worker's clone.

    Args:
        name: a stage of dvc.yaml.
        place: where the run works that the stage belongs to. Leave it out to work in the worker's own clone.
        force: run the stage even if nothing changed.
    """
    there = Place(**place) if place else place_of(run_workspace([]))
    return Completed(name=work(name, there, force).capitalize(), message=here())
