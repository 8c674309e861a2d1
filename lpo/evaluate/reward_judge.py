"""The latent reward model as a judge of finished pictures: what training climbed, never evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from lpo.families.family import Family
from lpo.rewards.lrm import LatentRewardModel
from lpo.sampling.generate import to_tensor

T_OF_REWARD = 1  # it reads finished pictures at the clean end


class RewardJudge:
    """The latent reward model's own scores of finished pictures: to be read for reward hacking, never as a result."""

    def __init__(self, family: Family, reward: LatentRewardModel) -> None:
        self.family, self.reward = family, reward

    @torch.no_grad()
    def score_pixels(self, pictures: np.ndarray, prompts: Sequence[str]) -> torch.Tensor:
        """(N,) of pictures (N, H, W, 3) uint8 of the size that the family draws."""
        latents = self.family.scale(self.family.encode_images(to_tensor(pictures)).chunk(2, dim=1)[0])
        steps = torch.full((len(latents),), T_OF_REWARD, device=self.family.device)
        null = self.reward.encode_prompts([""])
        return self.reward.score(latents, steps, self.reward.encode_prompts(list(prompts)), null).cpu()

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        return self.score_pixels(np.stack([np.array(p.convert("RGB")) for p in pictures]), prompts)
