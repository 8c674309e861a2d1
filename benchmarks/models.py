"""Models of a size with random weights: shapes as published, no download. On the meta device they have no weights.

The emoji size is the committed model of the embedded world with its trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from lpo.config import Tune, load_params
from lpo.emoji.vocabulary import make_tokenizer
from lpo.families import sd
from lpo.families.latent_space import Codec
from lpo.families.sd import SD
from lpo.families.sdxl import SDXL
from lpo.families.unet import drop_up_blocks
from lpo.rewards.lrm import LatentRewardModel

ROOT = Path(__file__).parents[1]
ATTENTION_DOWN, ATTENTION_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading",
}  # fmt: skip
SD15_UNET = {
    "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "down_block_types": (ATTENTION_DOWN,) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + (ATTENTION_UP,) * 3,
}  # fmt: skip
SDXL_UNET = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
    "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", ATTENTION_DOWN, ATTENTION_DOWN),
    "up_block_types": (ATTENTION_UP, ATTENTION_UP, "UpBlock2D"), "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
             "hidden_act": "gelu", "projection_dim": 1280}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A model's shapes, and the settings of the iteration that is compared at this size (paper's, where it has any)."""

    unet: dict[str, Any]
    text_encoders: tuple[dict[str, Any], ...]
    embedding_dim: int
    vae_scaling: float
    lora_rank: int
    prompts: int  # of one rollout: the published batch of one GPU, less where a quarter of it would be no number
    batch_size: int  # of one update
    micro_batch_size: int  # of ours: pairs whose activations are alive at once
    recompute: bool  # the published recipe checkpoints activations at this size


SIZES = {
    "sd15": Size(SD15_UNET, (CLIP_L,), 768, 0.18215, 4, 4, 10, 10, False),
    "sdxl": Size(SDXL_UNET, (CLIP_L, CLIP_BIGG), 1280, 0.13025, 64, 4, 4, 1, True),
}
EMOJI = Size({}, (), 128, 1.0, 16, 32, 64, 64, False)  # rollouts and batches as in params.yaml


def iteration(size: str, **changes: Any) -> Tune:
    """The iteration of the bars: 20 steps, eta 1, guidance 5, 4 candidates, a quarter of the pairs kept."""
    shape = SIZES.get(size, EMOJI)
    config = load_params(ROOT / "params.yaml").tune
    rule = replace(config.threshold, schedule="quantile", low=0.75, high=0.75)
    usual = replace(
        config, prompts=shape.prompts, prompts_per_rollout=shape.prompts, num_inference_steps=20, eta=1.0,
        guidance_scale=5.0, num_candidates=4, continue_from="random", reward_timestep="current", threshold=rule,
        beta=500.0, clip_epsilon=0.1, lora_rank=shape.lora_rank, batch_size=shape.batch_size, epochs_per_rollout=1,
        timestep_range=(0, 1000), timestep_weights="none", kl_weight=0.0, micro_batch_size=shape.micro_batch_size,
    )  # fmt: skip
    return replace(usual, **changes)


def build(
    size: str, device: torch.device, dtype: torch.dtype, reward: bool = False, side: int | None = None
) -> SD | SDXL:
    """The family object of a size, with random weights; `side` of the latents, if not the size's own."""
    if size == "emoji":
        return sd.load(str(ROOT / "data/base"), device, dtype, reward)
    shape = SIZES[size]
    tokenizer = make_tokenizer()
    words = {"vocab_size": 49408, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**shape.unet | ({"sample_size": side} if side else {})).to(dtype)
        encoders: list[Any] = [cls(CLIPTextConfig(**words, **given)).to(dtype)
                    for cls, given in zip((CLIPTextModel, CLIPTextModelWithProjection), shape.text_encoders,
                                          strict=False)]  # fmt: skip
        vae = None if reward else AutoencoderKL(**VAE, scaling_factor=shape.vae_scaling).to(dtype)
    if reward:
        drop_up_blocks(unet)
    for module in (unet, *encoders, vae):
        if module is not None:
            module.requires_grad_(False).eval()
    codec = Codec(vae, VAE | {"scaling_factor": shape.vae_scaling, "shift_factor": None}, device, dtype)
    scheduler, pixels = DDIMScheduler(**SCHEDULER), 8 * unet.config.sample_size
    names = ("text_encoder", "text_encoder_2")[: len(encoders)]
    words = dict.fromkeys(("tokenizer", "tokenizer_2")[: len(names)], tokenizer)
    shared = unet, dict(zip(names, encoders, strict=True)), words, scheduler, codec, pixels, device, dtype
    return SDXL(*shared, zero_null=False) if size == "sdxl" else SD(*shared)


def build_reward(
    size: str, device: torch.device, dtype: torch.dtype, side: int | None = None, family: SD | SDXL | None = None
) -> LatentRewardModel:
    """The paper's latent reward model of a size: down and mid blocks, visual feature enhancement at 7.5.

    With `family` it is an adapter on that model.
    """
    torch.manual_seed(1)
    backbone = family or build(size, device, dtype, reward=True, side=side)
    width = SIZES.get(size, EMOJI).embedding_dim
    projection = "none" if size == "sdxl" else "random"
    rank = None if family is None else 16
    model = LatentRewardModel(backbone, width, 7.5, "multi_scale", projection, adapter_rank=rank)
    return model.requires_grad_(False).eval()


def prompts(count: int) -> list[str]:
    words = ("cat", "dog", "taxi", "star", "heart", "tree", "moon", "bus")
    return [f"a red {words[i % len(words)]} above a taxi at night" for i in range(count)]
