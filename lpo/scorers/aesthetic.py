"""The LAION aesthetic predictor: a linear head, or linear layers, on the unit image embedding of CLIP ViT-L/14.

    score = head(f / |f|),  f = visual_projection(vision_model(pixels)),  about 1..10

Published as sac+logos+ava1-l14-linearMSE (768 -> 1024 -> 128 -> 64 -> 16 -> 1, `layers.0`, `.2`, `.4`, `.6`, `.7`; the
numbers between are dropout, there are no activations), and before that as one linear layer (`weight`, `bias`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, CLIPVisionModelWithProjection

from lpo.errors import LpoError
from lpo.hub import from_pretrained, read_weights


class Aesthetic:
    """`score(images)` of pictures of any size."""

    def __init__(
        self, vision: CLIPVisionModelWithProjection, head: nn.Sequential, processor: AutoImageProcessor
    ) -> None:
        self.vision, self.head, self.processor = vision, head, processor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(N,) float32 on the CPU."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        embedding = self.vision(pixels.to(self.vision.device, self.vision.dtype)).image_embeds.float()
        return self.head(F.normalize(embedding, dim=1))[:, 0].cpu()


def load(model: str, head: str | None, device: torch.device, dtype: torch.dtype) -> Aesthetic:
    """`model` is CLIP ViT-L/14, `head` the predictor's file; without one the model's own weights hold it.

    Raises:
        LpoError: if one of them is not here or does not fit the other.
    """
    vision = from_pretrained(CLIPVisionModelWithProjection, model, dtype=dtype).to(device).eval()
    processor = from_pretrained(AutoImageProcessor, model)
    layers = make_head(read_weights(head) if head else read_weights(model, "layers."), head or model)
    if layers[0].in_features != vision.config.projection_dim:
        what = f"the head reads {layers[0].in_features} numbers, the model makes {vision.config.projection_dim}"
        raise LpoError(what, head or model, f"use the CLIP model that the head was trained on, not {model}")
    return Aesthetic(vision.requires_grad_(False), layers.to(device).float().eval(), processor)


def make_head(weights: dict[str, torch.Tensor], where: str) -> nn.Sequential:
    """The linear layers that a predictor's tensors describe, in the order of their numbers.

    Raises:
        LpoError: if a name is none of a predictor's, or one layer's outputs are not the next one's inputs.
    """
    names = {name: re.fullmatch(r"(?:layers\.(\d+)\.)?(weight|bias)", name) for name in weights}
    strange = sorted(name for name, match in names.items() if match is None)
    numbers = sorted({int(match.group(1) or 0) for match in names.values() if match})
    found: dict[tuple[int, str], torch.Tensor] = {
        (int(match.group(1) or 0), match.group(2)): weights[name] for name, match in names.items() if match
    }
    complete = all((number, part) in found for number in numbers for part in ("weight", "bias"))
    widths = [tuple(found[number, "weight"].shape) for number in numbers] if complete else []
    joined = all(len(w) == 2 for w in widths) and all(b[1] == a[0] for a, b in zip(widths, widths[1:], strict=False))
    if strange or not widths or not joined or widths[-1][0] != 1:
        raise LpoError(f"no aesthetic predictor: its tensors are {sorted(weights)[:12]}", where, "check the file")
    layers = nn.Sequential(*(nn.Linear(width[1], width[0]) for width in widths))
    for layer, number in zip(layers, numbers, strict=True):
        layer.weight.data, layer.bias.data = (found[number, part].float() for part in ("weight", "bias"))
    return layers.requires_grad_(False)
