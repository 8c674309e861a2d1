"""The score of a finished picture by a reward that was trained on noisy ones, as DiNa-LRM does (arXiv 2602.11146).

The mean over timesteps and draws of noise:
    S(p, x_0) = mean over t and draws of S(p, add_noise(x_0, eps, t), t),  eps ~ N(0, I)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lpo.diffusion.transitions import Transition
from lpo.families.conditioning import Conditioning
from lpo.rewards.dina import DinaReward
from lpo.rewards.protocol import Reward

TIMESTEPS = (200, 500, 700)  # where a finished picture is scored unless a caller says otherwise


def ensemble_score(
    reward: Reward, transition: Transition, latents: torch.Tensor, timesteps: Sequence[int], draws: int,
    conditioning: Conditioning, null: Conditioning, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """(B,) float32 of clean latents (B, C, h, w) under B prompts; len(timesteps) * draws forwards.

    All rows get the same noise, so that a difference between rows is none of noise. DiNa-LRM gives one score to all
    noisy copies together.
    """
    scores, seen = [], []
    for t in timesteps:
        times = torch.full((len(latents),), t, device=latents.device)
        for _ in range(draws):
            noise = torch.randn(latents.shape[1:], generator=generator).to(latents.device, latents.dtype)
            noisy = transition.add_noise(latents, noise.expand_as(latents), times)
            seen.append((noisy, times))
            if not isinstance(reward, DinaReward):
                scores.append(reward.score(noisy, times, conditioning, null))
    if isinstance(reward, DinaReward):
        return reward.together([noisy for noisy, _ in seen], [times for _, times in seen], conditioning)
    return torch.stack(scores).mean(0)
