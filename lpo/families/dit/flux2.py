"""FLUX.2 klein (Black Forest Labs, 2026): blocks of two streams and of one, three layers of Qwen3, flow matching.

The VAE's latents are normalised a patch of 2 x 2 at a time (`latent_space`), and stay (32, h, w) here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from lpo.families import lora
from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import ADDED, Transformer, attended, mean_word, words_of
from lpo.families.family import Encoder

LAYERS = (9, 18, 27)  # of Qwen3, whose states stand beside each other


@dataclass
class Flux2Klein(Transformer):
    name = "flux2_klein"
    pipeline = Flux2KleinPipeline
    network = Flux2Transformer2DModel
    encoders = {"": Encoder(Qwen3ForCausalLM, Qwen2TokenizerFast, 512)}
    blocks = ("transformer_blocks", "single_transformer_blocks")
    lora_targets = [*lora.TARGETS, *ADDED, "to_qkv_mlp_proj"]
    packed = 4

    def text(self, prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return self.tokenizer.apply_chat_template(chat, **options)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """States of three layers, of padding too, as in the pipeline; pooled: their mean over the words."""
        ids, words = ids.to(self.device), words_of(ids, self.tokenizer).to(self.device)
        output = self.text_encoders["text_encoder"].model(ids, attended(words), output_hidden_states=True)
        states = torch.cat([output.hidden_states[layer] for layer in LAYERS], dim=-1)
        return Conditioning({"prompt_embeds": states}, mean_word(states, words))

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, patches = conditioning.tensors["prompt_embeds"], Flux2KleinPipeline._patchify_latents(latents)
        return {
            "hidden_states": Flux2KleinPipeline._pack_latents(patches), "timestep": t / 1000,
            "encoder_hidden_states": states, "guidance": None,
            "img_ids": Flux2KleinPipeline._prepare_latent_ids(patches[:1]).to(self.device),
            "txt_ids": Flux2KleinPipeline._prepare_text_ids(states[:1]).to(self.device),
        }  # fmt: skip

    def unpack(self, output: Any, latents: torch.Tensor) -> torch.Tensor:
        n, _, height, width = latents.shape
        return Flux2KleinPipeline._unpatchify_latents(output.mT.reshape(n, -1, height // 2, width // 2))

    def shift(self, num_inference_steps: int) -> float:
        return compute_empirical_mu(self.picture_tokens, num_inference_steps)


load = Flux2Klein.load
