"""PickScore: a CLIP ViT-H/14 tuned on Pick-a-Pic.

    PickScore(x, c) = exp(logit_scale) cos(x, c)                            about 20 to 23

Source: Kirstain et al. 2023 (arXiv 2305.01569), section 3; weights yuvalkirstain/PickScore_v1, tokenizer and picture
settings laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image

from lpo.scorers.clip_pair import ClipPair, Pixels, load_pair


@dataclass(frozen=True)
class PickScore:
    clip: ClipPair
    pixels: Pixels

    @torch.no_grad()
    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32 of N pictures and their prompts."""
        return (self.clip.model.logit_scale.exp() * self.clip.cosine(self.pixels(pictures), prompts)).cpu()


def load(model: str, processor: str, device: torch.device) -> PickScore:
    """Folders or hub ids. Raises LpoError if a part is missing."""
    return PickScore(*load_pair(model, processor, device))
