"""Which of K scored candidates make a pair (LPO, arXiv 2502.01051).

    measure(gap) = softmax(max, min)_max - softmax(max, min)_min = tanh(gap / 2),  gap = max - min
    a pair (best, worst) is kept if its measure is above the threshold of its step
    threshold(t) = low + (high - low) (sigma_t - sigma_min) / (sigma_max - sigma_min)

Scores are (B, K), higher is better; indices are long (B,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lpo.errors import NotFinite


class Selection(NamedTuple):
    """best, worst: indices (B,). keep: bool (B,). gap: score of best less score of worst, (B,) float32."""

    best: torch.Tensor
    worst: torch.Tensor
    keep: torch.Tensor
    gap: torch.Tensor


def threshold(
    sigma_t: torch.Tensor | float,
    sigma_min: torch.Tensor | float,
    sigma_max: torch.Tensor | float,
    schedule: str,
    low: float,
    high: float,
    t: torch.Tensor | float,
    num_train_timesteps: int = 1000,
    t_min: torch.Tensor | float = 1,
    t_max: torch.Tensor | float = 951,
) -> torch.Tensor:
    """Threshold of the measure at a step, low + (high - low) place, of the shape of sigma_t.

        constant        place = 0
        sigma           place = (sigma_t - sigma_min) / (sigma_max - sigma_min)
        sigma_squared   the same of the squares
        linear          place = t / num_train_timesteps
        linear_over_steps   place = (t - t_min) / (t_max - t_min), of the released code: (t - 1) / 950 of 20 steps

    Args:
        sigma_t: DDIM standard deviation of the step at eta 1; sigma_min, sigma_max over all steps of the sampler.
        t: timestep of the step, t_min, t_max those of the sampler; only the linear ones look at them.

    Raises:
        ValueError: on another schedule ("quantile" asks the measures, not the step: `quantile_threshold`).
    """
    sigma, least, most, time = (torch.as_tensor(value) for value in (sigma_t, sigma_min, sigma_max, t))
    if schedule == "constant":
        place = torch.zeros_like(sigma)
    elif schedule == "sigma":
        place = (sigma - least) / (most - least)
    elif schedule == "sigma_squared":
        place = (sigma**2 - least**2) / (most**2 - least**2)
    elif schedule == "linear":
        place = time / num_train_timesteps
    elif schedule == "linear_over_steps":
        place = (time - t_min) / (torch.as_tensor(t_max) - t_min)
    else:
        raise ValueError(f"no threshold by step for schedule {schedule!r}")
    return low + (high - low) * place


def measure(gap: torch.Tensor) -> torch.Tensor:
    """tanh(gap / 2), in [0, 1): the difference of the two softmax probabilities."""
    return torch.tanh(gap / 2)


def quantile_threshold(measures: torch.Tensor, q: float) -> torch.Tensor:
    """The q-quantile, (), of measures of any shape: a pair above it belongs to the top share 1 - q."""
    return torch.quantile(measures.float(), q)


def check_finite(scores: torch.Tensor) -> None:
    """Refuse scores of any shape that are NaN or infinite. It waits for the device: once a rollout, not once a step.

    Of several processes give it the scores of all, so that all stop.

    Raises:
        NotFinite: if there are any.
    """
    bad = int((~scores.isfinite()).sum())
    if bad:
        remedy = "set model.dtype to bf16 or fp32, where half precision overflows; else train the reward again"
        raise NotFinite(f"{bad} of {scores.numel()} scores are NaN or infinite", "the reward of tune.reward", remedy)


def select_best_worst(scores: torch.Tensor, threshold: torch.Tensor | float) -> Selection:
    """Best and worst candidate of every row, and whether the pair is kept.

    Args:
        scores: (B, K).
        threshold: of the measure, (B,) or one for all. A pair on it is not kept, nor is an exact tie of all K.

    Raises:
        ValueError: unless scores are (B, K >= 2). They must be finite, see `check_finite`.
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be (B, K >= 2), are {tuple(scores.shape)}")
    wide = scores.float()
    high, best = wide.max(dim=1)
    low, worst = wide.min(dim=1)
    gap = high - low
    return Selection(best, worst, (measure(gap) > threshold) & (gap > 0), gap)
