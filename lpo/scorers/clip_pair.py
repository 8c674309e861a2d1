"""A CLIP model with its tokenizer: unit embeddings of pictures and captions, whose product is their cosine.

    v = W_v vision(x) / |W_v vision(x)|     u = W_t text(c) / |W_t text(c)|     cos(x, c) = <v, u>

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.3. PickScore, HPS and the colours of GenEval are read from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from lpo.hub import from_pretrained, tokenizer_of


@dataclass(frozen=True)
class ClipPair:
    """`model` is frozen and in float32; captions over the model's length (77 tokens) are cut, as published."""

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels (B, 3, S, S) -> unit embeddings (B, D)."""
        output = self.model.vision_model(pixels.to(self.model.device))
        return F.normalize(self.model.visual_projection(output.pooler_output), dim=1)

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> torch.Tensor:
        """Captions -> unit embeddings (B, D)."""
        ids = self.tokenizer(
            list(captions), padding=True, truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        ).input_ids  # fmt: skip
        output = self.model.text_model(ids.to(self.model.device))
        return F.normalize(self.model.text_projection(output.pooler_output), dim=1)

    def cosine(self, pixels: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
        """(B,) cosines of pictures and their captions."""
        return (self.embed_pixels(pixels) * self.embed_text(captions)).sum(1)


@dataclass(frozen=True)
class Pixels:
    """Pictures -> normalised pixels, by the settings that a published model was saved with."""

    processor: CLIPImageProcessorPil

    def __call__(self, pictures: Sequence[Image]) -> torch.Tensor:
        return self.processor([picture.convert("RGB") for picture in pictures], return_tensors="pt").pixel_values


def load_pair(model: str, processor: str, device: torch.device) -> tuple[ClipPair, Pixels]:
    """A CLIP model of a folder or hub id, with tokenizer and picture settings of `processor`. Raises LpoError."""
    tokenizer = tokenizer_of(CLIPTokenizer, processor)
    pixels = Pixels(from_pretrained(CLIPImageProcessorPil, processor))
    clip = from_pretrained(CLIPModel, model, dtype=torch.float32)
    return ClipPair(clip.requires_grad_(False).eval().to(device), tokenizer), pixels
