"""The flow `stage`: one stage on the worker that took it. Deployed as stage/cpu and stage/gpu."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.states import Completed

from tasks.stage import work
from tasks.workspace import Place, here, place_of, run_workspace


@flow(name="stage", flow_run_name="{name}")
def stage(name: str, place: dict[str, str] | None = None, force: bool = False) -> Any:
    """Bring one stage up to date.

    Args:
        name: a stage of dvc.yaml.
        place: where the run works that this stage belongs to; by hand, leave it out: the worker's own clone.
        force: run it although nothing changed.
    """
    there = Place(**place) if place else place_of(run_workspace([]))
    return Completed(message=f"{work(name, there, force)} in {here()}")
