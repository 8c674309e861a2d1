"""Accuracy of a step reward on held-out pairs, with intervals by bootstrap over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lpo.statistics import share
from lpo.train.reward.trainer import BINS


def accuracy_metrics(right: np.ndarray, frame: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Accuracy by timestep, by category and by difference, from (bins, pairs) of right (1), wrong (0) and tie (NaN)."""
    captions = frame["caption"].to_numpy()
    width = 1000 // BINS

    decided = ~np.isnan(right[0])

    def interval(values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        return share_with_interval(values[rows], captions[rows], seed)

    def early(rows: np.ndarray) -> dict[str, float]:
        return interval(right[: BINS // 2].mean(0), rows)  # over t < 500, where previews of a picture exist

    everything = np.ones(len(frame), bool)
    accuracy: dict[str, Any] = {
        "mean": round(float(np.nanmean(right)), 5),
        "below_500": round(float(np.nanmean(right[: BINS // 2])), 5),
        "by_timestep": [
            {"t_low": k * width, "t_high": (k + 1) * width, **interval(right[k], everything)} for k in range(BINS)
        ],
    }
    for column in ("category", "difference"):
        if column in frame:
            names = sorted(frame[column].dropna().unique())
            rows = {name: (frame[column] == name).to_numpy() for name in names}
            accuracy[f"by_{column}"] = {name: early(r) for name, r in rows.items() if (r & decided).any()}
    return {"accuracy": accuracy, "test_pairs": len(frame)}


def share_with_interval(right: np.ndarray, captions: np.ndarray, seed: int) -> dict[str, float]:
    """Share of right (1) among right and wrong (0), its interval and the number of pairs; ties (NaN) don't count."""
    decided = ~np.isnan(right)
    found = share(right[decided], captions[decided], seed=seed)
    return {k: round(float(found[k]), 5) for k in ("value", "low", "high")} | {"pairs": int(decided.sum())}
