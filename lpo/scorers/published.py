"""The three published scorers of MPCF behind the interface of the small ones: pictures and captions in, numbers out.

aesthetic  LAION's predictor on CLIP ViT-L/14    clip  the cosine of CLIP ViT-H/14    vqa  VQAScore of CLIP-FlanT5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lpo.config import Score
from lpo.families import DTYPES
from lpo.images import to_uint8
from lpo.scorers import aesthetic, clip_score, embedded, vqa


@dataclass(frozen=True)
class Published:
    """Three models, each with a preprocessing of its own, so pictures come in their own size."""

    aesthetic: aesthetic.Aesthetic
    clip: clip_score.ClipScore
    vqa: vqa.ClipFlanT5 | vqa.Vqa
    size = None  # pixels of the square that pictures must be; None: any

    def score(self, images: Sequence[Image.Image] | torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
        """aesthetic, clip and vqa, (N,) each; images are pictures, or a tensor (N, 3, H, W) in [-1, 1]."""
        pictures = to_pictures(images) if isinstance(images, torch.Tensor) else images
        return {
            "aesthetic": self.aesthetic.score(pictures),
            "clip": self.clip.score(pictures, captions),
            "vqa": self.vqa.score(pictures, captions),
        }


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1] as pictures."""
    return [Image.fromarray(array) for array in to_uint8(images)]


def load_scorers(config: Score, device: torch.device) -> Published | embedded.Scorers:
    """What `score.scorers` names. Raises LpoError where a model is not here."""
    if config.scorers != "published":
        return embedded.load(Path(config.scorers))
    models, dtype = config.models, DTYPES[config.models.dtype]
    return Published(
        aesthetic.load(models.aesthetic, models.aesthetic_head, device, dtype),
        clip_score.load(models.clip, device, dtype),
        vqa.load(models.vqa, models.vqa_vision, models.vqa_tokenizer, device, dtype),
    )
