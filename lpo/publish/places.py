"""Which place shows which model, and putting the model in use to the places that do not show it.

A place is a key of the section publish of params.yaml with its value, such as "hub OWNER/NAME". The ledger has a line
for each push: published, or pending with the reason. A push that failed is tried again by the next `lpo promote`,
whatever it decides, and by `lpo models publish`. A model that is no longer in use is not pushed any more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from lpo.config import Params
from lpo.errors import LpoError
from lpo.publish import folder, package
from lpo.publish.package import Package
from lpo.registry.ledger import BASE, Record, append, in_use, published, read_ledger

Push = Callable[[Package, str], str]


def places(params: Params) -> dict[str, tuple[Push, str]]:
    """The places that params.yaml names: what a place is called -> (how to push there, the value of its key)."""

    named = {key: value for key, value in asdict(params.publish).items() if value is not None}
    return {f"{key} {value}": (_push(key, params), value) for key, value in named.items()}


def _push(key: str, params: Params) -> Push:
    """Imported where it is named: the hub's client takes seconds."""
    if key == "hub":
        from lpo.publish import hub_repository

        return hub_repository.push
    if key == "wandb":
        from lpo.publish import wandb_registry

        return lambda found, place: wandb_registry.push(found, place, params.tracking)
    if key == "mlflow":
        from lpo.publish import mlflow_registry

        return mlflow_registry.push
    return folder.push


def publish(params: Params, card: Path | None, reward: Path | None) -> list[str]:
    """Put the model in use to every place that does not show it; the caller holds the ledger's lock.

    A failure of a place is a line of the ledger and of stderr, and not an exception: a promotion stands without it.

    Returns:
        The places that still wait.
    """
    records = read_ledger()
    name, found = in_use(records), places(params)
    shown = {place: record["name"] for place, record in published(records).items() if record["event"] == "published"}
    waiting = [place for place in found if shown.get(place) != name]
    if name == BASE:
        package.clear(None)
        return []
    left = []
    for place in waiting:
        push, value = found[place]
        try:
            promotion = next(r for r in reversed(records) if r["event"] == "promoted" and r["name"] == name)
            where = push(package.build(promotion, card, reward), value)
            note({"event": "published", "name": name, "place": place, "reason": f"to {place}", "where": where})
        except Exception as error:  # a registry that fails in any way must not undo a promotion
            left.append(place)
            note({"event": "pending", "name": name, "place": place, "reason": f"{place}: {why(error)}", "where": None})
    package.clear(name if left else None)
    return left


def note(record: Record) -> None:
    """Say what happened, and record it unless the ledger says so already."""
    print(
        f"{record['event']}: {record['reason']}" + (f", {record['where']}" if record["where"] else ""), file=sys.stderr
    )
    last = published(read_ledger()).get(record["place"])
    if last is None or not record.items() <= last.items():
        append(record)


def why(error: Exception) -> str:
    """One line for the ledger: what went wrong and what to do."""
    if isinstance(error, LpoError):
        return f"{error.what} ({error.where}). {error.remedy}" if error.remedy else error.what
    text = " ".join((str(error) or type(error).__name__).split())
    return f"{type(error).__name__}: {text}"[:400]
