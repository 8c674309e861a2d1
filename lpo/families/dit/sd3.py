"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): MMDiT, two CLIPs and perhaps T5, flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from lpo.families.conditioning import Conditioning
from lpo.families.dit.base import Transformer, mean_word, words_of
from lpo.families.family import Encoder

T5_TOKENS = 256


@dataclass
class SD3(Transformer):
    """Without T5 zeros stand for its states, as in the pipeline."""

    name = "sd3"
    pipeline = StableDiffusion3Pipeline
    network = SD3Transformer2DModel
    encoders = {
        "": Encoder(CLIPTextModelWithProjection, CLIPTokenizer),
        "_2": Encoder(CLIPTextModelWithProjection, CLIPTokenizer),
        "_3": Encoder(T5EncoderModel, T5TokenizerFast, T5_TOKENS, optional=True),
    }
    spaced_sigmas = False

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """Last hidden states but one of both CLIPs beside each other, then those of T5.

        pooled: text_embeds of both CLIPs, and the mean state of T5 over its words (LPO paper, appendix B: the text
        features of all text encoders).
        """
        columns, encoders = self.columns(ids), list(self.text_encoders.values())
        clips = [encoders[i](columns[i], output_hidden_states=True) for i in (0, 1)]
        embeds = torch.cat([clip.text_embeds for clip in clips], dim=-1)
        states = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
        width = self.denoiser.config.joint_attention_dim
        states, pooled = F.pad(states, (0, width - states.shape[-1])), embeds
        if len(encoders) == 2:
            t5 = states.new_zeros(len(ids), T5_TOKENS, width)
        else:
            t5 = encoders[2](columns[2])[0]
            pooled = torch.cat([embeds, mean_word(t5, words_of(columns[2], self.words["tokenizer_3"]))], dim=-1)
        return Conditioning({"prompt_embeds": torch.cat([states, t5], dim=1), "pooled": embeds}, pooled)

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        states, pooled = conditioning.tensors["prompt_embeds"], conditioning.tensors["pooled"]
        return {
            "hidden_states": latents, "timestep": t, "encoder_hidden_states": states, "pooled_projections": pooled,
        }  # fmt: skip


load = SD3.load
