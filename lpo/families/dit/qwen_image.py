"""Qwen-Image (arXiv 2508.02324): 60 blocks of two streams, Qwen2.5-VL, flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from lpo.diffusion.guidance import classifier_free
from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Transformer, attended, mean_word, pack, unpack, words_of
from lpo.families.family import Encoder

OWN = QwenImagePipeline(*[None] * 5)  # which holds the template, and how many tokens of it are left out again
TEMPLATE, DROPPED = OWN.prompt_template_encode, OWN.prompt_template_encode_start_idx


@dataclass
class QwenImage(Transformer):
    name = "qwen_image"
    pipeline = QwenImagePipeline
    network = QwenImageTransformer2DModel
    encoders = {"": Encoder(Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, 512 + DROPPED)}
    null_prompt = " "  # of the model's card: an empty one is no prompt there
    packed = 4

    def text(self, prompt: str) -> str:
        return TEMPLATE.format(prompt)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """The last hidden states without those of the template's beginning; pooled: their mean over the words."""
        ids, words = ids.to(self.device), words_of(ids, self.tokenizer).to(self.device)
        output = self.text_encoders["text_encoder"].model(ids, attended(words), output_hidden_states=True)
        states, words = output.hidden_states[-1][:, DROPPED:], words[:, DROPPED:]
        states = states * words[..., None]
        return Conditioning({"prompt_embeds": states, "words": words}, mean_word(states, words))

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        n, _, height, width = latents.shape
        return {
            "hidden_states": pack(latents), "timestep": t / 1000, "img_shapes": [[(1, height // 2, width // 2)]] * n,
            "encoder_hidden_states": conditioning.tensors["prompt_embeds"],
            "encoder_hidden_states_mask": conditioning.tensors["words"],
        }  # fmt: skip

    def unpack(self, output: Any, latents: torch.Tensor) -> torch.Tensor:
        return unpack(output, latents)

    def combine(self, uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
        """The guided velocity with the norm of the conditional one, a token at a time, as the pipeline has it."""
        guided, length = pack(classifier_free(uncond, cond, scale)), pack(cond).norm(dim=-1, keepdim=True)
        return unpack(guided * (length / guided.norm(dim=-1, keepdim=True)), cond)


load = QwenImage.load
