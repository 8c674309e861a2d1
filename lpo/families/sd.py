"""Stable Diffusion 1.x and 2.x, and the embedded base: one U-Net, one CLIP text encoder, DDIM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lpo.families import family, lora
from lpo.families import unet as unets
from lpo.families.conditioning import Conditioning
from lpo.families.latent_space import Codec


@dataclass
class SD:
    """See `lpo.families.family.Family` for what each method does."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    codec: Codec
    pixels: int
    device: torch.device
    dtype: torch.dtype

    name = "sd"
    lora_targets = lora.TARGETS
    reward_targets = lora.HALF_UNET
    pipeline = StableDiffusionPipeline

    latent_shape = property(family.latent_shape)
    pixels_per_latent = property(family.pixels_per_latent)
    encode_prompts = family.encode_prompts
    null = family.null
    encode_images = family.encode_images
    scale = family.scale
    decode = family.decode
    guided = family.guided
    transition = unets.transition
    steps = unets.steps
    add_lora = family.add_lora
    reference = family.reference
    lora_state = family.lora_state
    load_lora_state = family.load_lora_state
    save_lora = unets.save_lora
    load_lora = family.load_lora

    denoiser = property(lambda self: self.unet)
    tokens = property(lambda self: self.text_encoder.config.max_position_embeddings)
    token_columns = tokens

    def modules(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    def tokenizers(self) -> Mapping[str, Any]:
        return {"tokenizer": self.tokenizer}

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        return family.tokenize_side_by_side([(self.tokenizer, self.tokens)], prompts)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """pooled: CLIP's pooled output, which the published LRM-1.5 projects."""
        output = self.text_encoder(ids.to(self.device))
        return Conditioning({"prompt_embeds": output.last_hidden_state}, output.pooler_output)

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The U-Net's prediction, of the scheduler's prediction_type."""
        return self.unet(latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"]).sample

    def features(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled down block and mid block features, see `down_and_mid`."""
        return unets.down_and_mid(self.unet, latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"])


def load(
    path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
    denoiser: str | None = None, resolution: int | None = None, shard: bool = False, sampler: str | None = None,
    prediction_type: str | None = None,
) -> SD:  # fmt: skip
    """Load a diffusers folder (or hub id). `reward` leaves out the VAE and the U-Net's up blocks.

    vae, denoiser: another source for these parts. resolution: the side of pictures, else the U-Net's own. shard: leave
    each of several processes its part of the denoiser. sampler, prediction_type: see `scheduler.load`.

    Raises LpoError where the folder is none, or its scheduler's settings are unsupported.
    """
    return SD(**unets.load(path, device, dtype, reward, vae, denoiser, resolution, shard, sampler, prediction_type))
