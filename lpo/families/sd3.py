"""Stable Diffusion 3 (arXiv 2403.03206): a transformer (MMDiT), two CLIPs and perhaps T5, flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lpo.diffusion.transitions import Flow
from lpo.families import family, lora, parts, transformer
from lpo.families.conditioning import Conditioning
from lpo.families.latent_space import Codec

T5_TOKENS = 256


@dataclass
class SD3:
    """See `lpo.families.family.Family` for what each method does.

    text_encoders, words: two CLIPs and perhaps T5, and their tokenizers, by folder. Without T5 zeros stand for its
    states, as in the pipeline. form: of the stochastic step, see `Flow`. layer: a reward reads its output, from 1.
    """

    transformer: SD3Transformer2DModel
    text_encoders: Mapping[str, Any]
    words: Mapping[str, Any]
    scheduler: FlowMatchEulerDiscreteScheduler
    codec: Codec
    pixels: int
    form: Literal["ddim", "sde"]
    layer: int | None
    device: torch.device
    dtype: torch.dtype

    name = "sd3"
    pipeline = StableDiffusion3Pipeline
    lora_targets = [*lora.TARGETS, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]  # those of Flow-GRPO

    latent_shape = property(family.latent_shape)
    pixels_per_latent = property(family.pixels_per_latent)
    encode_prompts = family.encode_prompts
    null = family.null
    encode_images = family.encode_images
    scale = family.scale
    decode = family.decode
    guided = family.guided
    add_lora = family.add_lora
    reference = family.reference
    lora_state = family.lora_state
    load_lora_state = family.load_lora_state
    load_lora = family.load_lora

    @property
    def reward_targets(self) -> str:
        """What a reward runs: the first `layer` blocks."""
        blocks = "|".join(str(i) for i in range(self.layer or 0))
        names = "|".join(self.lora_targets).replace(".", r"\.")
        return rf"transformer_blocks\.({blocks})\..*\.({names})"

    denoiser = property(lambda self: self.transformer)
    tokenizer = property(lambda self: self.words["tokenizer"])
    tokens = property(lambda self: self.lengths[0])
    token_columns = property(lambda self: sum(self.lengths))

    @property
    def lengths(self) -> list[int]:
        """Tokens of each encoder; T5 knows no longest caption."""
        configs = [encoder.config for encoder in self.text_encoders.values()]
        return [getattr(config, "max_position_embeddings", T5_TOKENS) for config in configs]

    def modules(self) -> Mapping[str, nn.Module]:
        return {"transformer": self.transformer, **self.text_encoders}

    def tokenizers(self) -> Mapping[str, Any]:
        return self.words

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        return family.tokenize_side_by_side([*zip(self.words.values(), self.lengths, strict=True)], prompts)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """Last hidden states but one of both CLIPs beside each other, then those of T5.

        pooled: text_embeds of both CLIPs, and the mean state of T5 over its words (LPO paper, appendix B: the text
        features of all text encoders).
        """
        columns = ids.to(self.device).split(self.lengths, dim=1)
        encoders = list(self.text_encoders.values())
        clips = [encoders[i](columns[i], output_hidden_states=True) for i in (0, 1)]
        embeds = torch.cat([clip.text_embeds for clip in clips], dim=-1)
        states = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        width = self.transformer.config.joint_attention_dim
        states, pooled = F.pad(states, (0, width - states.shape[-1])), embeds
        if len(encoders) == 2:
            t5 = states.new_zeros(len(ids), T5_TOKENS, width)
        else:
            t5 = encoders[2](columns[2])[0]
            words = (columns[2] != encoders[2].config.pad_token_id)[..., None].to(t5.dtype)
            pooled = torch.cat([embeds, (t5 * words).sum(1) / words.sum(1).clamp(min=1)], dim=-1)
        return Conditioning({"prompt_embeds": torch.cat([states, t5], dim=1), "pooled": embeds}, pooled)

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The velocity eps - x0."""
        states, pooled = conditioning.tensors["prompt_embeds"], conditioning.tensors["pooled"]
        return self.transformer(latents.to(self.dtype), states, pooled, t).sample

    def features(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The mean over picture tokens of the output of layer `layer`, see `hidden_mean`."""
        states, pooled = conditioning.tensors["prompt_embeds"], conditioning.tensors["pooled"]
        return [], transformer.hidden_mean(self.transformer, latents.to(self.dtype), t, states, pooled, self.layer)

    def transition(self, eta: float) -> Flow:
        return Flow(eta, self.form, scale=self.scheduler.config.num_train_timesteps)

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return transformer.flow_steps(self.scheduler, num_inference_steps)

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        self.pipeline.save_lora_weights(folder, transformer_lora_layers=state, safe_serialization=True)


def load(
    path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
    denoiser: str | None = None, resolution: int | None = None, form: Literal["ddim", "sde"] = "ddim",
    layer: int | None = None, shard: bool = False,
) -> SD3:  # fmt: skip
    """Load a diffusers folder (or hub id). See `sd.load`; `reward` also leaves out the layers after `layer`."""
    scheduler = transformer.check_scheduler(parts.scheduler(FlowMatchEulerDiscreteScheduler, path))
    net, codec, pixels = family.load_denoiser(
        SD3Transformer2DModel, "transformer", path, device, dtype, reward, transformer.keep(layer), vae, denoiser,
        resolution, shard,
    )  # fmt: skip
    clip, t5 = (CLIPTextModelWithProjection, CLIPTokenizer), (T5EncoderModel, T5TokenizerFast)
    encoders, words = {}, {}
    for number, (kind, words_kind) in {"": clip, "_2": clip, "_3": t5}.items():
        if number != "_3" or parts.has(path, "text_encoder_3"):
            encoders[f"text_encoder{number}"] = parts.module(kind, path, f"text_encoder{number}", dtype, device)
            words[f"tokenizer{number}"] = parts.tokenizer(words_kind, path, f"tokenizer{number}", device)
    return SD3(net, encoders, words, scheduler, codec, pixels, form, layer, device, dtype)
