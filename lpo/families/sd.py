"""Stable Diffusion 1.x and 2.x, and the embedded base: one U-Net, one CLIP text encoder, DDIM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel, CLIPTokenizer

from lpo.families.conditioning import Conditioning
from lpo.families.family import Encoder
from lpo.families.unet import UNet


@dataclass
class SD(UNet):
    name = "sd"
    pipeline = StableDiffusionPipeline
    encoders = {"": Encoder(CLIPTextModel, CLIPTokenizer)}

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """pooled: CLIP's pooled output, which the published LRM-1.5 projects."""
        output = self.text_encoders["text_encoder"](ids.to(self.device))
        return Conditioning({"prompt_embeds": output.last_hidden_state}, output.pooler_output)


load = SD.load
