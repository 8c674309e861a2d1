"""A study's cells -> its table: win rates over the base with intervals over prompts and over runs.

A run is a seed, of the whole pipeline or of the tuning. The pictures of a run share prompts and seeds among the base
and all arms, so every comparison is paired. Two levels are drawn again: runs with replacement, and within each drawn
run its prompts.

    win_i  = 1 where the arm's picture i is better than the base's, 1/2 where equal, 0 else      (ties count half)
    value  = mean over runs of the mean over prompts of win_i
    p      = 2 min(share of draws <= chance, share of draws >= chance), at least 1 / R
    p_holm = Holm's correction over all arms of one question

difference_*: the same of win_i(arm) - win_i(reference arm), p against 0. With three runs the upper level is coarse.
gain_*, gain_difference_*: the same of gain_i, the axis of the arm's picture i less that of the base's. A win rate says
how often, a gain how much: an adapter that changes hardly anything can win most prompts.
best_base_*: the same of win_i over the base's image at its best guidance scale, where the cells have one.
Sources: Davison and Hinkley 1997, 3.8 (nested bootstrap); Holm 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lpo.errors import LpoError

RESAMPLES = 2000
AXES = ("utility", "alignment", "aesthetic", "all_correct")
REFERENCE = "lpo"  # the arm that the others are compared with
CHANCE = 0.5
BASE, BEST_BASE = -1, -2  # snapshots of no training (lpo/study/cell.py)


def nested_draws(
    values: Sequence[NDArray[np.float64]], resamples: int = RESAMPLES, seed: int = 0
) -> NDArray[np.float64]:
    """Means (R,) of `resamples` draws of runs and, in each drawn run, of prompts; values: one array a run."""
    rng = np.random.default_rng(seed)
    runs = rng.integers(0, len(values), (resamples, len(values)))
    total = np.zeros(resamples)
    for slot in range(len(values)):
        for run, of_run in enumerate(values):
            rows = np.flatnonzero(runs[:, slot] == run)
            total[rows] += of_run[rng.integers(0, len(of_run), (len(rows), len(of_run)))].mean(1)
    return total / len(values)


def interval(values: Sequence[NDArray[np.float64]], chance: float, seed: int = 0) -> dict[str, float]:
    """{value, low, high, p} of the mean over runs, 95%, p against `chance`."""
    draws = nested_draws(values, seed=seed)
    low, high = np.quantile(draws, (0.025, 0.975))
    p = 2 * min(float((draws <= chance).mean()), float((draws >= chance).mean()))
    value = float(np.mean([of_run.mean() for of_run in values]))
    return {"value": value, "low": float(low), "high": float(high), "p": min(1.0, max(p, 1 / len(draws)))}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of `p`."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, i in enumerate(int(place) for place in np.argsort(p, kind="stable")):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = worst
    return adjusted


def gains(cell: pd.DataFrame, snapshot: int, axis: str, over: int = BASE) -> NDArray[np.float64]:
    """gain_i of one snapshot over another of the same run, in the order of seeds.

    Raises LpoError where the two have not drawn the same prompts with the same seeds.
    """
    keys = ["prompt", "seed"]
    base, arm = (cell[cell["snapshot"] == k].sort_values("seed").reset_index(drop=True) for k in (over, snapshot))
    if len(base) == 0 or not base[keys].equals(arm[keys]):
        raise LpoError(f"snapshot {snapshot} and the base have other prompts or seeds", "studies/cells", "run it again")
    return arm[axis].to_numpy(float) - base[axis].to_numpy(float)


def wins(gained: NDArray[np.float64]) -> NDArray[np.float64]:
    """win_i of gain_i."""
    return (np.sign(gained) + 1) / 2


def best_within(cell: pd.DataFrame, column: str, limit: float) -> int | None:
    """Of the snapshots whose `column` (seconds or prompts) is at most `limit` the one with the best validation.

    None where there is none. It is what a training that stops there would keep; the last one may be over-optimised.
    """
    within = cell[(cell["snapshot"] >= 0) & (cell[column] <= limit)].sort_values("snapshot")
    return None if within.empty else int(within.loc[within["validation"].idxmax(), "snapshot"])


def limit_of(cells: pd.DataFrame, column: str) -> float:
    """Of `seconds` the most that any cell used, as all had one clock; of `prompts` the most that every cell reached."""
    reached = cells.groupby(["arm", "run"])[column].max()
    return float(reached.max() if column == "seconds" else reached.min())


def comparison(cells: pd.DataFrame, question: str, arms: Sequence[str], equal: str) -> list[dict[str, Any]]:
    """Rows of the table for one question: every arm at equal `seconds` or `prompts`, on every axis.

    Args:
        cells: results.parquet of all cells with arm, run and reward_seconds. arms: those of the question.

    All arms are compared over the same runs: those of which the reference and every arm that is there have a cell. An
    arm without a snapshot within the limit in some run is left out.
    """
    present = [arm for arm in (REFERENCE, *arms) if arm in set(cells["arm"])]
    runs = sorted(set.intersection(*(set(cells.loc[cells["arm"] == arm, "run"]) for arm in present)))
    if not runs:
        return []
    chosen = cells[cells["arm"].isin(present) & cells["run"].isin(runs)]
    by_cell = {(str(arm), int(run)): rows for (arm, run), rows in chosen.groupby(["arm", "run"])}
    limit = limit_of(chosen, equal)
    taken = {arm: [best_within(by_cell[arm, run], equal, limit) for run in runs] for arm in present}
    rows: list[dict[str, Any]] = []
    for axis in (axis for axis in AXES if axis in cells):
        gained = {
            arm: [gains(by_cell[arm, run], k, axis) for run, k in zip(runs, places, strict=True) if k is not None]
            for arm, places in taken.items()
            if None not in places
        }
        for arm, changes in gained.items():
            values = [wins(of_run) for of_run in changes]
            used = [by_cell[arm, run].query("snapshot == @k").iloc[0] for run, k in zip(runs, taken[arm], strict=True)]
            row: dict[str, Any] = {"question": question, "arm": arm, "equal": equal, "limit": limit, "axis": axis}
            ties = float(np.mean(np.concatenate(values) == CHANCE))
            row |= {"runs": len(runs), "pictures": sum(len(v) for v in values), "ties": ties}
            row |= {name: float(np.mean([u[name] for u in used])) for name in ("seconds", "reward_seconds", "prompts")}
            row |= interval(values, CHANCE)
            row |= {f"gain_{name}": v for name, v in interval(changes, 0.0).items()}
            if (cells["snapshot"] == BEST_BASE).any():
                places = zip(runs, taken[arm], strict=True)
                over = [wins(gains(by_cell[arm, run], int(k or 0), axis, BEST_BASE)) for run, k in places]
                row |= {f"best_base_{name}": v for name, v in interval(over, CHANCE).items()}
            if arm != REFERENCE and REFERENCE in gained:
                both = list(zip(changes, gained[REFERENCE], strict=True))
                less = interval([wins(mine) - wins(other) for mine, other in both], 0.0)
                row |= {f"difference_{name}": v for name, v in less.items()}
                less = interval([mine - other for mine, other in both], 0.0)
                row |= {f"gain_difference_{name}": v for name, v in less.items()}
            rows.append(row)
        for name in ("p", "difference_p", "gain_p", "gain_difference_p"):
            these = [row for row in rows if row["axis"] == axis and name in row]
            for row, adjusted in zip(these, holm([row[name] for row in these]), strict=True):
                row[f"{name}_holm"] = adjusted
    return rows


def curves(cells: pd.DataFrame, arms: Sequence[str]) -> list[dict[str, Any]]:
    """Win rate over the base of every snapshot: arm, run, snapshot, seconds, prompts, and a column an axis."""
    rows = []
    for (arm, run), cell in cells[cells["arm"].isin(arms)].groupby(["arm", "run"]):
        for k in sorted(cell.loc[cell["snapshot"] >= 0, "snapshot"].unique()):
            first = cell[cell["snapshot"] == k].iloc[0]
            row = {"arm": arm, "run": run, "snapshot": int(k), "seconds": first["seconds"], "prompts": first["prompts"]}
            rows.append(row | {axis: float(wins(gains(cell, k, axis)).mean()) for axis in AXES if axis in cell})
    return rows


def flip_rates(flips: pd.DataFrame) -> list[dict[str, Any]]:
    """Share of pairs whose order flips, ties left out: axis, t, pairs (all, kept, dropped), count, value, low, high."""
    rows = []
    for name, part in (("all", flips), ("kept", flips[flips["consistent"]]), ("dropped", flips[~flips["consistent"]])):
        decided = part[~part["tie"]]
        for (axis, t), found in decided.groupby(["axis", "t"]):
            by_caption = [of_one["flip"].to_numpy(float) for _, of_one in found.groupby("caption")]
            rate = _clustered(by_caption)
            rows.append({"axis": axis, "t": int(t), "pairs": name, "count": len(found)} | rate)
    return rows


def _clustered(groups: Sequence[NDArray[np.float64]], seed: int = 0) -> dict[str, float]:
    sums, counts = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    drawn = np.random.default_rng(seed).integers(0, len(groups), (RESAMPLES, len(groups)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return {"value": float(sums.sum() / counts.sum()), "low": float(low), "high": float(high)}
