"""The three published scorers of MPCF behind the interface of the small ones: pictures and captions in, numbers out.

aesthetic  LAION's predictor on CLIP ViT-L/14    clip  the cosine of CLIP ViT-H/14    vqa  VQAScore of CLIP-FlanT5
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lpo.config import Score
from lpo.families import DTYPES
from lpo.images import to_uint8
from lpo.scorers import aesthetic, clip_score, embedded, vqa

NAMES = ("aesthetic", "clip", "vqa")


@dataclass(frozen=True)
class Published:
    """Models by their names, each with a preprocessing of its own, so pictures come in their own size."""

    models: Mapping[str, Any]
    size = None  # pixels of the square that pictures must be; None: any

    def score(self, images: Sequence[Image.Image] | torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
        """What each model says, (N,); images are pictures, or a tensor (N, 3, H, W) in [-1, 1]."""
        pictures = to_pictures(images) if isinstance(images, torch.Tensor) else images
        return {
            name: model.score(pictures) if name == "aesthetic" else model.score(pictures, captions)
            for name, model in self.models.items()
        }


def to_pictures(images: torch.Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [-1, 1] as pictures."""
    return [Image.fromarray(array) for array in to_uint8(images)]


def load_scorers(
    config: Score, device: torch.device, names: Collection[str] = NAMES
) -> Published | embedded.Scorers:
    """What `score.scorers` names. Of published ones those in `names` alone are loaded; the small ones are one file.

    Raises:
        LpoError: where a model is not here.
    """
    if config.scorers != "published":
        return embedded.load(Path(config.scorers))
    models, dtype = config.models, DTYPES[config.models.dtype]
    loaders = {
        "aesthetic": lambda: aesthetic.load(models.aesthetic, models.aesthetic_head, device, dtype),
        "clip": lambda: clip_score.load(models.clip, device, dtype),
        "vqa": lambda: vqa.load(models.vqa, models.vqa_vision, models.vqa_tokenizer, device, dtype),
    }
    return Published({name: load() for name, load in loaders.items() if name in names})
