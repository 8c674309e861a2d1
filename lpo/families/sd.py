"""Stable Diffusion 1.x and 2.x, and the embedded base: one U-Net, one CLIP text encoder, DDIM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lpo.diffusion.schedule import check_scheduler
from lpo.diffusion.transitions import DDIM
from lpo.families import family, lora, parts, unet
from lpo.families.conditioning import Conditioning
from lpo.families.latent_space import Codec, check_channels, load_codec


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
    reward_targets = lora.HALF_UNET
    pipeline = StableDiffusionPipeline

    latent_shape = property(family.latent_shape)
    pixels_per_latent = property(family.pixels_per_latent)
    encode_prompts = family.encode_prompts
    encode_images = family.encode_images
    scale = family.scale
    decode = family.decode
    guided = family.guided
    reference = family.reference
    lora_state = family.lora_state
    load_lora_state = family.load_lora_state

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def tokens(self) -> int:
        return self.text_encoder.config.max_position_embeddings

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

    def null(self) -> Conditioning:
        return self.encode_prompts([""])

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The U-Net's prediction, of the scheduler's prediction_type."""
        return self.unet(latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"]).sample

    def features(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled down block and mid block features, see `down_and_mid`."""
        return unet.down_and_mid(self.unet, latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"])

    def transition(self, eta: float) -> DDIM:
        return DDIM.from_scheduler(self.scheduler, eta)

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return unet.ddim_steps(self.scheduler, num_inference_steps)

    def add_lora(self, rank: int, seed: int) -> list[nn.Parameter]:
        return list(lora.add(self.unet, rank, seed, lora.TARGETS).values())

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the layout that `pipe.load_lora_weights(folder)` reads."""
        self.pipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)

    def load_lora(self, folder: Path) -> None:
        """Load and switch on an adapter written by `save_lora`."""
        unet.load_lora(self.pipeline, self.unet, folder)


def load(
    path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
    denoiser: str | None = None, resolution: int | None = None,
) -> SD:  # fmt: skip
    """Load a diffusers folder (or hub id). `reward` leaves out the VAE and the U-Net's up blocks.

    vae, denoiser: another source for these parts. resolution: the side of pictures, else the U-Net's own.

    Raises LpoError where the folder is none, or its scheduler's settings are unsupported.
    """
    scheduler = parts.scheduler(DDIMScheduler, path)
    check_scheduler(scheduler.config)
    shorten = unet.drop_up_blocks if reward else parts.whole
    net = parts.module(UNet2DConditionModel, *parts.either(denoiser, path, "unet"), dtype, device, shorten)
    codec = load_codec(*parts.either(vae, path, "vae"), dtype, device, weights=not reward)
    check_channels(codec, net.config.in_channels, path)
    text_encoder = parts.module(CLIPTextModel, path, "text_encoder", dtype, device)
    tokenizer = parts.tokenizer(CLIPTokenizer, path, "tokenizer", device)
    pixels = resolution or net.config.sample_size * codec.pixels_per_latent
    return SD(net, text_encoder, tokenizer, scheduler, codec, pixels, device, dtype)
