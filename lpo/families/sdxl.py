"""Stable Diffusion XL (arXiv 2307.01952): one U-Net, two CLIP text encoders, sizes and crops as conditions, DDIM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lpo.families import parts
from lpo.families.conditioning import Conditioning
from lpo.families.family import Encoder
from lpo.families.unet import UNet


@cache
def whole_picture(pixels: int, device: torch.device) -> torch.Tensor:
    """Original size, crop and target size, (6,). Made once: a list that goes to a GPU makes the host wait for it."""
    return torch.tensor([pixels, pixels, 0, 0, pixels, pixels], device=device)


@dataclass
class SDXL(UNet):
    """zero_null: the pipeline guides against zeros, not against the empty prompt (force_zeros_for_empty_prompt)."""

    zero_null: bool

    name = "sdxl"
    pipeline = StableDiffusionXLPipeline
    encoders = {
        "": Encoder(CLIPTextModel, CLIPTokenizer), "_2": Encoder(CLIPTextModelWithProjection, CLIPTokenizer),
    }  # fmt: skip

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """The last hidden states but one of both encoders; pooled: the second's text_embeds, as in LRM-XL."""
        pairs = zip(self.text_encoders.values(), self.columns(ids), strict=True)
        small, large = [encoder(columns, output_hidden_states=True) for encoder, columns in pairs]
        states = torch.cat([small.hidden_states[-2], large.hidden_states[-2]], dim=-1)
        return Conditioning({"prompt_embeds": states, "text_embeds": large.text_embeds}, large.text_embeds)

    def null(self) -> Conditioning:
        empty = self.encode_prompts([""])
        if not self.zero_null:
            return empty
        zeros = {name: torch.zeros_like(tensor) for name, tensor in empty.tensors.items()}
        return Conditioning(zeros, torch.zeros_like(empty.pooled))

    def added(self, conditioning: Conditioning) -> dict[str, torch.Tensor]:
        """Pooled text, and the sizes of a whole picture that fills it."""
        sizes = whole_picture(self.pixels, self.device)
        text = conditioning.tensors["text_embeds"]
        return {"text_embeds": text, "time_ids": sizes.to(text.dtype).expand(len(conditioning), -1)}

    @classmethod
    def own_fields(cls, path: str) -> dict[str, Any]:
        return {"zero_null": parts.pipeline_config(path).get("force_zeros_for_empty_prompt", True)}


load = SDXL.load
