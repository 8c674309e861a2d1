"""Does validation choose the snapshot that the judge would choose?

    validation   what chooses: the scorers' mean gain over the base in standard deviations (train/policy/validation.py)
    gain         the judge's: mean of utility(snapshot) - utility(base) over prompts and seeds
    regret       gain of the snapshot that the judge would choose, less gain of the one that validation chose; 0 where
                 they are the same

The judge chooses the best of its own gains, so the regret is at or above zero by construction, and by chance too: its
interval over trainings says how large it is, not whether it differs from zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lpo.format import signed
from lpo.study.compare import gains, interval


def choices(cells: pd.DataFrame, arms: Sequence[str]) -> list[dict[str, Any]]:
    """A row a training with at least two snapshots.

    Its keys: arm, run, validation and gain (lists by snapshot), chosen and best (places in them), regret, error: the
    standard error of the regret over prompts.
    """
    rows = []
    for (arm, run), cell in cells[cells["arm"].isin(arms)].groupby(["arm", "run"]):
        places = sorted(cell.loc[cell["snapshot"] >= 0, "snapshot"].unique())
        if len(places) < 2:
            continue
        gained = [gains(cell, k, "utility") for k in places]
        validation = [float(cell.loc[cell["snapshot"] == k, "validation"].iloc[0]) for k in places]
        mean = [float(of_one.mean()) for of_one in gained]
        chosen, best = validation.index(max(validation)), mean.index(max(mean))
        lost = gained[best] - gained[chosen]
        row = {"arm": str(arm), "run": int(run), "validation": validation, "gain": mean, "chosen": chosen, "best": best}
        rows.append(row | {"regret": float(lost.mean()), "error": float(lost.std(ddof=1) / len(lost) ** 0.5)})
    return rows


def sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often validation chose the judge's best, or one within its error, and what the choice cost."""
    same = sum(row["chosen"] == row["best"] for row in rows)
    near = sum(row["regret"] <= 1.96 * row["error"] for row in rows)
    worst = max(rows, key=lambda row: float(row["regret"]))
    mean = interval([np.array([row["regret"]]) for row in rows], 0.0)
    low, value, high = (signed(mean[name]) for name in ("low", "value", "high"))
    return (
        f"Validation chose the judge's best snapshot in {same} of {len(rows)} trainings, and one within its error "
        f"in {near}. The choice cost {value} of utility on average ({low} to {high}), at most "
        f"{signed(worst['regret'])} ({worst['arm'].replace('_', ' ')}, seed {worst['run']})."
    )
