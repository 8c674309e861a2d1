"""SANA (arXiv 2410.10629): a linear transformer on latents of 32 x 32 pixels each, Gemma, flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from transformers import AutoTokenizer, Gemma2Model

from lpo.families import lora
from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Transformer, attended, mean_word, words_of
from lpo.families.family import Encoder


@dataclass
class Sana(Transformer):
    """Prompts are read as they are: the pipeline's complex_human_instruction is left out."""

    name = "sana"
    pipeline = SanaPipeline
    network = SanaTransformer2DModel
    encoders = {"": Encoder(Gemma2Model, AutoTokenizer, 300)}
    lora_targets = lora.TARGETS
    spaced_sigmas = False

    def text(self, prompt: str) -> str:
        return prompt.lower().strip()

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """The last hidden states; pooled: their mean over the words."""
        ids, words = ids.to(self.device), words_of(ids, self.tokenizer).to(self.device)
        encoder = self.text_encoders["text_encoder"]
        states = encoder(ids, attended(words))[0]
        return Conditioning({"prompt_embeds": states, "words": words}, mean_word(states, words))

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, words = conditioning.tensors["prompt_embeds"], conditioning.tensors["words"]
        t = t * self.denoiser.config.timestep_scale
        return {
            "hidden_states": latents, "timestep": t, "encoder_hidden_states": states, "encoder_attention_mask": words,
        }  # fmt: skip


load = Sana.load
