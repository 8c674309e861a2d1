"""Pairs as a step reward is trained on them, and whether it ranks them as their labels do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lpo.data.latents import Latents
from lpo.train.common import distributed


@dataclass(frozen=True)
class Pairs:
    """Pairs as rows into stored latents: places_k (N, 2), captions (N,), labels (N, 2), weights (N,) of mean one."""

    places_0: np.ndarray
    places_1: np.ndarray
    captions: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.captions)


def load_pairs(frame: pd.DataFrame, latents: Latents, weighted: bool) -> Pairs:
    """The pairs of a frame with the columns of data/filtered/kept.parquet."""
    weights = 1 / frame["num_example_per_prompt"].to_numpy(float) if weighted else np.ones(len(frame))
    return Pairs(
        latents.places(frame["image_0_uid"]),
        latents.places(frame["image_1_uid"]),
        latents.caption_rows(frame["caption"]),
        torch.tensor(frame[["label_0", "label_1"]].to_numpy(np.float32)),
        torch.tensor(weights / weights.mean(), dtype=torch.float32),
    )


def verdicts(difference: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Right (1), wrong (0) or tie (NaN) of differences of scores (B,) under labels (B, 2), (B,)."""
    sign = (labels[:, 0] - labels[:, 1]).sign()
    right = (difference.cpu().sign() == sign).double()
    return torch.where(sign == 0, torch.nan, right).numpy()


def of_all(right: np.ndarray) -> np.ndarray:
    """`verdicts` of the pairs of all processes; a pair is NaN in those that have it not."""
    return np.fmax.reduce(distributed.gathered(right))
