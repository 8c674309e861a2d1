"""FLUX.1 dev and schnell (Black Forest Labs, 2024): 19 blocks of two streams, 38 of one, CLIP and T5, flow matching."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Transformer, mean_word, pack, unpack, words_of
from lpo.families.family import Encoder


@dataclass
class Flux(Transformer):
    """embedded_guidance: what the transformer of a guidance-distilled model (dev) is told; schnell reads none."""

    embedded_guidance: float = 1.0

    name = "flux"
    pipeline = FluxPipeline
    network = FluxTransformer2DModel
    encoders = {"": Encoder(CLIPTextModel, CLIPTokenizer), "_2": Encoder(T5EncoderModel, T5TokenizerFast, 512)}
    blocks = ("transformer_blocks", "single_transformer_blocks")
    packed = 4

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """T5's states, and CLIP's pooled output; pooled: this, and the mean state of T5 over its words."""
        (clip, t5), (first, second) = self.text_encoders.values(), self.columns(ids)
        embeds, states = clip(first).pooler_output, t5(second)[0]
        mean = mean_word(states, words_of(second, self.words["tokenizer_2"]))
        return Conditioning({"prompt_embeds": states, "pooled": embeds}, torch.cat([embeds, mean], dim=-1))

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, (_, _, height, width) = conditioning.tensors["prompt_embeds"], latents.shape
        guided = self.denoiser.config.guidance_embeds
        return {
            "hidden_states": pack(latents), "timestep": t / 1000, "encoder_hidden_states": states,
            "pooled_projections": conditioning.tensors["pooled"],
            "img_ids": FluxPipeline._prepare_latent_image_ids(0, height // 2, width // 2, states.device, states.dtype),
            "txt_ids": states.new_zeros(states.shape[1], 3),
            "guidance": torch.full_like(t, self.embedded_guidance, dtype=torch.float32) if guided else None,
        }  # fmt: skip

    def unpack(self, output: Any, latents: torch.Tensor) -> torch.Tensor:
        return unpack(output, latents)

    def guided(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
    ) -> torch.Tensor:
        """Of dev the scale is the embedded guidance, in one forward of B; of schnell it is classifier-free guidance."""
        if not self.denoiser.config.guidance_embeds:
            return super().guided(latents, t, conditioning, null, scale)
        return replace(self, embedded_guidance=scale).predict(latents, t, conditioning)


load = Flux.load
