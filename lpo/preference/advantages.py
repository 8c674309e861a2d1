"""Advantages: how good each of the K candidates of a prompt is beside the others. Rewards are (B, K), higher is better.

    group    A = (reward - mean of the group) / std of the group
    step     A = (gain - mean of all) / std of all
    prompt   A = (reward - mean of the prompt) / std of those differences over all prompts

Several rewards R are normalised one by one and then averaged with their weights (`combined`), as GDPO does
(arXiv 2601.05242). Normalising a weighted sum instead would leave the choice to the reward of the largest spread.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def combined(
    rule: Callable[[torch.Tensor], torch.Tensor], rewards: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """A = sum over r of w_r rule(rewards_r) / sum of w_r, (B, K), of rewards (R, B, K) and weights (R,).

    Where the rewards agree it is the advantage of one of them, and where they contradict each other it is near 0. GDPO
    divides by the standard deviation of the sum over the batch instead of by the weights.
    """
    shares = (weights / weights.sum()).view(-1, 1, 1)
    return (shares * torch.stack([rule(part) for part in rewards])).sum(0)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(reward - mean) / std over the K candidates of a row, (B, K); population std, 0 where all rewards are equal."""
    wide = _wide(rewards)
    centred = wide - wide.mean(dim=1, keepdim=True)
    std = centred.square().mean(dim=1, keepdim=True).sqrt()
    equal = wide.amax(dim=1, keepdim=True) == wide.amin(dim=1, keepdim=True)
    return torch.where(equal, 0.0, centred / std)


def step_advantages(gains: torch.Tensor) -> torch.Tensor:
    """(gain - mean) / std over all candidates of all prompts at one step, (B, K); population std, 0 if all are equal.

    gain = S(x_s, s) - S(x_t, t), what a step added to the reward (DenseGRPO, arXiv 2601.20218). The candidates of a
    group share x_t, so S(x_t, t) would cancel if a group was centred on its own. Over prompts it does not: a group all
    of whose candidates gained much has positive advantages.
    """
    wide = _wide(gains)
    centred = wide - wide.mean()
    return torch.where(wide.max() == wide.min(), 0.0, centred / centred.square().mean().sqrt())


def prompt_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """(reward - mean of the prompt) / std of those differences over all B K pictures, (B, K); 0 where all are equal."""
    wide = _wide(rewards)
    centred = wide - wide.mean(dim=1, keepdim=True)
    return centred / centred.square().mean().sqrt().clamp_min(torch.finfo(wide.dtype).tiny)


def optimality(advantages: torch.Tensor) -> torch.Tensor:
    """r in [0, 1] of pictures with these `prompt_advantages`: 1/2 + clip(A / 2, -1, 1) / 2 (DiffusionNFT)."""
    return 0.5 + (advantages / 2).clamp(-1, 1) / 2


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
