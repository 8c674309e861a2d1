"""What the rollout, the search and the guard ask of a reward."""

from __future__ import annotations

from typing import Protocol

import torch

from lpo.families.conditioning import Conditioning


class Reward(Protocol):
    """`space` is "latent" (it reads x_t as it is) or "pixel" (it predicts x_0, decodes it and looks at the picture)."""

    @property
    def space(self) -> str: ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning: ...

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """(B,) float32, higher is better, of noisy latents (B, C, h, w) at timesteps t (B,) under B prompts."""
        ...
