"""Classifier-free guidance (arXiv 2207.12598)."""

from __future__ import annotations

import torch


def classifier_free(uncond: torch.Tensor, cond: torch.Tensor, guidance_scale: float) -> torch.Tensor:
    """uncond + guidance_scale (cond - uncond), for predictions of one shape; scale 1 gives cond.

    Raises:
        ValueError: if the shapes differ.
    """
    if uncond.shape != cond.shape:
        raise ValueError(f"uncond {tuple(uncond.shape)} and cond {tuple(cond.shape)} must have one shape")
    return uncond + guidance_scale * (cond - uncond)
