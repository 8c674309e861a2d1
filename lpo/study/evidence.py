"""The cells of a study, in two files.

    studies/STUDY.json      {"cells": {NAME: {...}}, "rewards": {ID: {...}}}. A cell has arm, question, seed, seeds_of,
                            changes, key, revision, the summary of its training, and the ID of its reward's metrics or
                            null. Cells that share a reward share its metrics.
    studies/STUDY.parquet   the verdicts on every image of every cell: `results.parquet` of `lpo.study.cell`, and `cell`

NAME is ARM-SEED. A cell counts as present when the JSON file lists it: `add` takes its entry out first and puts it back
last, so a process that is killed in between leaves a cell that is run again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.errors import LpoError
from lpo.files import write_json, write_parquet

FOLDER = Path("studies")


@dataclass(frozen=True)
class Evidence:
    """cells: by name. rewards: metrics of rewards by ID. results: verdicts of all cells."""

    cells: dict[str, dict[str, Any]]
    rewards: dict[str, dict[str, Any]]
    results: pd.DataFrame

    def of(self, name: str) -> pd.DataFrame:
        """The verdicts of one cell.

        Cells that ran before 22 November 2026 have no validation, and one snapshot, so there is nothing to choose.

        Raises:
            LpoError: if it has several snapshots and none was validated.
        """
        frame = self.results[self.results["cell"] == name].drop(columns="cell")
        if frame["validation"].notna().all():
            return frame
        if frame["snapshot"].nunique() > 2:  # the base is one of them
            raise LpoError("its snapshots were never validated, so none can be chosen", name, "run the cell again")
        return frame.assign(validation=0.0)

    def reward_of(self, name: str) -> dict[str, Any] | None:
        """The metrics of the reward that the cell used; None for a method without a reward."""
        identity = self.cells[name]["reward"]
        return None if identity is None else self.rewards[identity]


def read(study: str, folder: Path = FOLDER) -> Evidence:
    """What is there of a study: an empty one where nothing was run yet."""
    about, results = folder / f"{study}.json", folder / f"{study}.parquet"
    if not about.exists():
        return Evidence({}, {}, pd.DataFrame())
    held = json.loads(about.read_text(encoding="utf-8"))
    frame = pd.read_parquet(results)
    if missing := sorted(set(held["cells"]) - set(frame["cell"])):
        raise LpoError(f"there are no verdicts of {', '.join(missing)}", str(results), f"git checkout {results}")
    return Evidence(held["cells"], held["rewards"], frame)


def add(
    study: str, name: str, about: dict[str, Any], results: pd.DataFrame, reward: dict[str, Any] | None,
    folder: Path = FOLDER,
) -> None:  # fmt: skip
    """Put a cell in, in the place of an earlier one of that name. `about` is all but the reward's ID."""
    held = read(study, folder)
    cells = {key: cell for key, cell in held.cells.items() if key != name}
    rows = [held.results[held.results["cell"].isin(list(cells))]] if cells else []
    if name in held.cells:
        _write(study, cells, held.rewards, folder)
    frame = results.assign(cell=name)
    if "validation" not in frame:
        frame = frame.assign(validation=float("nan"))
    everything = pd.concat([*rows, frame], ignore_index=True)
    everything = everything.sort_values(["cell", "snapshot", "seed"], kind="stable").reset_index(drop=True)
    write_parquet(folder / f"{study}.parquet", everything)
    identity, rewards = None, held.rewards
    if reward is not None:
        identity = hashlib.sha256(json.dumps(reward, sort_keys=True).encode()).hexdigest()[:12]
        rewards = rewards | {identity: reward}
    _write(study, cells | {name: {**about, "reward": identity}}, rewards, folder)


def _write(study: str, cells: dict[str, Any], rewards: dict[str, Any], folder: Path) -> None:
    used = {cell["reward"] for cell in cells.values()}
    kept = {key: value for key, value in sorted(rewards.items()) if key in used}
    write_json(folder / f"{study}.json", {"cells": dict(sorted(cells.items())), "rewards": kept})
