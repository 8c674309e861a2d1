"""Beside the published LPO recipe: SPO's reward, a step of Diffusion-DPO, and the training of the reward model.

Everything that is counted is the library's own code: `StepPreferenceModel.score`, `Family.guided`,
`LatentRewardModel.score`, `PolicyTrainer.learn`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from benchmarks import models
from benchmarks.meters import Flops
from lpo.emoji.vocabulary import make_tokenizer
from lpo.rewards.spm import CLIP_MEAN, CLIP_STD, StepPreferenceModel
from lpo.train.policy.steps import NoisyGroups
from lpo.train.policy.trainer import PolicyTrainer

META = torch.device("meta")
CANDIDATES = 4
CLIP_H_TEXT = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_H_VISION = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                 "image_size": 224, "patch_size": 14}  # fmt: skip


def pixel_reward(backbone: Any) -> StepPreferenceModel:
    """SPO's: a CLIP-H with time, on x_0 that the policy predicts with guidance 5 and the VAE decodes."""
    parts = {"text_config": CLIP_H_TEXT | {"vocab_size": 49408}, "vision_config": CLIP_H_VISION}
    with torch.device(META):
        clip = CLIPModel(CLIPConfig(**parts, projection_dim=1024))
        model = StepPreferenceModel(backbone, clip, make_tokenizer(), CLIP_MEAN, CLIP_STD, 5.0)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def step_flops(size: str) -> dict[str, Any]:
    """FLOPs of sampling and scoring at one step of one prompt, K = 4; text is encoded already.

    SPO's guided pass over the candidates is also the next step's prediction for the one that goes on, so that its
    step is the pixel reward and nothing else.
    """
    family, reward = models.build(size, META, torch.bfloat16), models.build_reward(size, META, torch.bfloat16)
    pixel = pixel_reward(family)
    text, null = family.encode_prompts(["a cat"]), family.null()
    own = reward.encode_prompts(["a cat"])
    x, t = torch.empty(1, *family.latent_shape, device=META), torch.ones(1, device=META, dtype=torch.long)
    candidates, times = x.expand(CANDIDATES, -1, -1, -1), t.expand(CANDIDATES)
    with Flops() as sampling:
        family.guided(x, t, text, null, 5.0)
    with Flops() as scoring:
        reward.score(candidates, times, own.repeat(CANDIDATES), own)
    seen, empty = (replace(words, pooled=torch.empty(1, 1024, device=META)) for words in (text, null))
    with Flops() as spo:
        pixel.score(candidates, times, seen.repeat(CANDIDATES), empty)
    lpo = sampling.total + scoring.total
    return {"lpo_sampling": sampling.total, "lpo_scoring": scoring.total, "spo": spo.total, "ratio": spo.total / lpo}


def diffusion_dpo_flops(size: str) -> int:
    """FLOPs of an optimiser step of Diffusion-DPO a pair: both pictures, policy and reference, no guidance."""
    family = models.build(size, META, torch.bfloat16)
    config = replace(models.iteration(size), method="diffusion_dpo", batch_size=1, micro_batch_size=1)
    trainer = PolicyTrainer(family, models.build_reward(size, META, torch.bfloat16), config, 0)
    shape = family.latent_shape
    batch = NoisyGroups(
        torch.empty(1, 2, *shape, device=META), torch.empty(1, *shape, device=META), torch.ones(1, 2, device=META),
        torch.ones(1, device=META, dtype=torch.long), torch.zeros(1, device=META, dtype=torch.long),
    )  # fmt: skip
    with Flops() as flops:
        trainer.learn(batch, family.encode_prompts(["a cat"]))
    return flops.total


def reward_training_flops(size: str) -> dict[str, Any]:
    """FLOPs of training the reward on one picture of a pair, with stored latents and with the VAE in the loop."""
    family, reward = models.build(size, META, torch.bfloat16), models.build_reward(size, META, torch.bfloat16)
    reward.requires_grad_(True)
    picture = torch.empty(1, 3, family.pixels, family.pixels, device=META)
    with Flops() as encoding:
        family.encode_images(picture)
    x, t = torch.empty(1, *family.latent_shape, device=META), torch.ones(1, device=META, dtype=torch.long)
    text = reward.encode_tokens(torch.zeros(1, reward.backbone.token_columns, dtype=torch.long, device=META), ["a cat"])
    with Flops() as training:
        reward.score(x, t, text, text).sum().backward()
    both = encoding.total + training.total
    return {"encoding": encoding.total, "training": training.total, "throughput_ratio": both / training.total}
