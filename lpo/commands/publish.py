"""publish: the model in use -> the places of the section publish that do not show it yet."""

from __future__ import annotations

from pathlib import Path

import typer

from lpo import paths
from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import alone
from lpo.publish.places import places, publish
from lpo.registry.dvc_lock import is_recorded, read_stages
from lpo.registry.ledger import BASE, BUSY, LOCK, WEIGHTS, in_use, name_of, read_ledger, settle

CARD = paths.REPORT / "MODEL_CARD.md"


def run(params: Params) -> None:
    """Push, and say where the model is.

    Raises:
        LpoError: if params.yaml names no place.
        typer.Exit: with 1 if a place still waits.
    """
    if not places(params):
        raise LpoError("no place is named", "params.yaml: publish", "set publish.hub, mlflow, wandb or folder")
    with alone(LOCK, BUSY):
        settle(read_ledger())
        left = publish_in_use(params)
        name = in_use(read_ledger())
    typer.echo("base is in use, and nothing is published" if name == BASE else f"{name}: {len(left)} places wait")
    if left:
        raise typer.Exit(1)


def publish_in_use(params: Params) -> list[str]:
    """Put the model in use to the places that do not show it; the caller holds the lock. Returns those that wait."""
    name = in_use(read_ledger())
    here = (paths.TUNED / WEIGHTS).exists() and name_of(paths.TUNED) == name
    return publish(params, *(_from_the_last_run() if here else (None, None)))


def _from_the_last_run() -> tuple[Path | None, Path | None]:
    """(the card with figures, the reward), each if dvc.lock says that it belongs to the model in data/tuned."""
    stages = read_stages()
    card = is_recorded(stages, "report", "deps", paths.TUNED) and is_recorded(stages, "report", "outs", paths.REPORT)
    rewards = [path for path in (paths.REWARD, paths.SPM) if is_recorded(stages, "tune", "deps", path)]
    return CARD if card and CARD.exists() else None, rewards[0] if rewards else None
