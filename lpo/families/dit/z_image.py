"""Z-Image and Z-Image-Turbo (Tongyi, arXiv 2511.22699): one stream of picture and words, Qwen3, flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen2TokenizerFast, Qwen3Model

from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Transformer, attended, mean_word, words_of
from lpo.families.family import Encoder


@dataclass
class ZImage(Transformer):
    """The transformer is told 1 - t / T and predicts x0 - eps; a scale g of guidance is the pipeline's g - 1."""

    name = "z_image"
    pipeline = ZImagePipeline
    network = ZImageTransformer2DModel
    encoders = {"": Encoder(Qwen3Model, Qwen2TokenizerFast, 512)}
    blocks = ("layers",)
    last = "all_final_layer.2-1"

    def text(self, prompt: str) -> str:
        chat = [{"role": "user", "content": prompt}]
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        return self.tokenizer.apply_chat_template(chat, **options)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """The last hidden states but one; pooled: their mean over the words."""
        ids, words = ids.to(self.device), words_of(ids, self.tokenizer).to(self.device)
        states = self.text_encoders["text_encoder"](ids, attended(words), output_hidden_states=True).hidden_states[-2]
        return Conditioning({"prompt_embeds": states, "words": words}, mean_word(states, words))

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, words = conditioning.tensors["prompt_embeds"], conditioning.tensors["words"]
        read = states if states.is_meta else [row[here] for row, here in zip(states, words, strict=True)]
        return {"x": list(latents[:, :, None]), "t": 1 - t / 1000, "cap_feats": list(read)}

    def unpack(self, output: Any, latents: torch.Tensor) -> torch.Tensor:
        return -torch.stack(output).squeeze(2)

    def picture(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The picture comes before the words."""
        return hidden[:, : (latents.shape[2] // 2) * (latents.shape[3] // 2)]


load = ZImage.load
