"""Stable Diffusion XL (arXiv 2307.01952): one U-Net, two CLIP text encoders, sizes and crops as conditions, DDIM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lpo.families import family, lora, parts
from lpo.families import unet as unets
from lpo.families.conditioning import Conditioning
from lpo.families.latent_space import Codec


@dataclass
class SDXL:
    """See `lpo.families.family.Family` for what each method does.

    zero_null: the pipeline guides against zeros, not against the empty prompt (force_zeros_for_empty_prompt).
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    scheduler: DDIMScheduler
    codec: Codec
    pixels: int
    zero_null: bool
    device: torch.device
    dtype: torch.dtype

    name = "sdxl"
    lora_targets = lora.TARGETS
    reward_targets = lora.HALF_UNET
    pipeline = StableDiffusionXLPipeline

    latent_shape = property(family.latent_shape)
    pixels_per_latent = property(family.pixels_per_latent)
    encode_prompts = family.encode_prompts
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

    @property
    def token_columns(self) -> int:
        return self.tokens + self.text_encoder_2.config.max_position_embeddings

    def modules(self) -> Mapping[str, nn.Module]:
        return {"unet": self.unet, "text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    def tokenizers(self) -> Mapping[str, Any]:
        return {"tokenizer": self.tokenizer, "tokenizer_2": self.tokenizer_2}

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        lengths = self.tokens, self.token_columns - self.tokens
        return family.tokenize_side_by_side([*zip(self.tokenizers().values(), lengths, strict=True)], prompts)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """The last hidden states but one of both encoders; pooled: the second's text_embeds, as in LRM-XL."""
        first, second = ids.to(self.device).split([self.tokens, self.token_columns - self.tokens], dim=1)
        small = self.text_encoder(first, output_hidden_states=True)
        large = self.text_encoder_2(second, output_hidden_states=True)
        states = torch.cat([small.hidden_states[-2], large.hidden_states[-2]], dim=-1)
        return Conditioning({"prompt_embeds": states, "text_embeds": large.text_embeds}, large.text_embeds)

    def null(self) -> Conditioning:
        empty = self.encode_prompts([""])
        if not self.zero_null:
            return empty
        zeros = {name: torch.zeros_like(tensor) for name, tensor in empty.tensors.items()}
        return Conditioning(zeros, torch.zeros_like(empty.pooled))

    def added(self, conditioning: Conditioning) -> dict[str, torch.Tensor]:
        """What the U-Net adds to its time embedding: pooled text, and the sizes of a whole picture that fills it."""
        sizes = torch.tensor([self.pixels, self.pixels, 0, 0, self.pixels, self.pixels], device=self.device)
        text = conditioning.tensors["text_embeds"]
        return {"text_embeds": text, "time_ids": sizes.to(text.dtype).expand(len(conditioning), -1)}

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The U-Net's prediction, of the scheduler's prediction_type."""
        states = conditioning.tensors["prompt_embeds"]
        return self.unet(latents.to(self.dtype), t, states, added_cond_kwargs=self.added(conditioning)).sample

    def features(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled down block and mid block features, see `down_and_mid`."""
        states = conditioning.tensors["prompt_embeds"]
        return unets.down_and_mid(self.unet, latents.to(self.dtype), t, states, self.added(conditioning))


def load(
    path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
    denoiser: str | None = None, resolution: int | None = None, shard: bool = False, sampler: str | None = None,
    prediction_type: str | None = None,
) -> SDXL:  # fmt: skip
    """Load a diffusers folder (or hub id). See `sd.load`."""
    return SDXL(
        **unets.load(path, device, dtype, reward, vae, denoiser, resolution, shard, sampler, prediction_type),
        text_encoder_2=parts.module(CLIPTextModelWithProjection, path, "text_encoder_2", dtype, device),
        tokenizer_2=parts.tokenizer(CLIPTokenizer, path, "tokenizer_2", device),
        zero_null=parts.pipeline_config(path).get("force_zeros_for_empty_prompt", True),
    )
