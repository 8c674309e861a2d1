"""What the families with a UNet2DConditionModel share: its first half, which a latent reward model reads (LPO paper,
section 3.2), its sampler's steps, its LoRA, and loading its parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from lpo.diffusion.schedule import ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM
from lpo.families import parts, scheduler
from lpo.families.family import Family, load_denoiser


def down_and_mid(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    t: torch.Tensor,
    prompt_embeds: torch.Tensor,
    added: Mapping[str, torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Spatial means of each down block's last residual before its downsampler, and of the mid block.

    latents (B, C, h, w), t (B,) -> ([(B, C_1), ..., (B, C_n)], (B, C_n)). SD1.5: 320, 640, 1280, 1280 and 1280,
    which are `down_block_res_samples[2, 5, 8, 11]` of the published LRM. The up blocks are not run, and may be absent.
    """
    emb = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=t))
    if added:
        aug = unet.get_aug_embed(emb=emb, encoder_hidden_states=prompt_embeds, added_cond_kwargs=dict(added))
        emb = emb if aug is None else emb + aug
    sample = unet.conv_in(latents)
    pooled: list[torch.Tensor] = []
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            sample, residuals = block(hidden_states=sample, temb=emb, encoder_hidden_states=prompt_embeds)
        else:
            sample, residuals = block(hidden_states=sample, temb=emb)
        last = residuals[-1] if block.downsamplers is None else residuals[-2]
        pooled.append(last.mean(dim=(2, 3)))
    sample = unet.mid_block(sample, emb, encoder_hidden_states=prompt_embeds)
    return pooled, sample.mean(dim=(2, 3))


def drop_up_blocks(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Remove what `down_and_mid` never runs, in place: about 60 % of an SD1.5 U-Net."""
    unet.up_blocks = torch.nn.ModuleList()
    unet.conv_norm_out = unet.conv_act = None
    unet.conv_out = torch.nn.Identity()
    return unet


def load(
    path: str, device: torch.device, dtype: torch.dtype, reward: bool, vae: str | None, denoiser: str | None,
    resolution: int | None, shard: bool, sampler: str | None, prediction_type: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The fields that `SD` and `SDXL` both have, by name. See `sd.load`."""
    ddim = scheduler.load(path, sampler, prediction_type)
    net, codec, pixels = load_denoiser(
        UNet2DConditionModel, "unet", path, device, dtype, reward, drop_up_blocks, vae, denoiser, resolution,
        shard,
    )  # fmt: skip
    return {
        "unet": net, "text_encoder": parts.module(CLIPTextModel, path, "text_encoder", dtype, device),
        "tokenizer": parts.tokenizer(CLIPTokenizer, path, "tokenizer", device), "scheduler": ddim,
        "codec": codec, "pixels": pixels, "device": device, "dtype": dtype,
    }  # fmt: skip


# The methods that are the same for both families, taken in as those of `lpo.families.family` are.


def transition(family: Family, eta: float) -> DDIM:
    return DDIM.from_scheduler(family.scheduler, eta)


def steps(family: Family, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, s) of the sampler's steps, (n,) long each; s = -1 after the last."""
    ddim = family.scheduler
    return ddim_timesteps(ddim, num_inference_steps), previous_timesteps(ddim, num_inference_steps)


def save_lora(family: Family, folder: Path, state: dict[str, torch.Tensor]) -> None:
    family.pipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)
