"""The VAEs of diffusers that families have: what their configurations say, and one form of encoding and decoding."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
import torch

# class -> (configuration of the channels, of the levels, levels that the second one does not list)
KINDS = {
    "AutoencoderKL": ("latent_channels", "block_out_channels", 0),
    "AutoencoderKLFlux2": ("latent_channels", "block_out_channels", 0),
    "AutoencoderKLQwenImage": ("z_dim", "temperal_downsample", 1),
    "AutoencoderDC": ("latent_channels", "encoder_block_out_channels", 0),
}
CERTAIN = -30.0  # log variance of a VAE that gives one latent, not a distribution


def kind(config: Mapping[str, Any]) -> str:
    return config.get("_class_name", "AutoencoderKL")


def value(config: Mapping[str, Any], name: str) -> Any:
    """What config.json says, or what it means by leaving it out: that of SD 1.5 is older than scaling_factor."""
    if name in config:
        return config[name]
    return signature(getattr(diffusers, kind(config)).__init__).parameters[name].default


def channels(config: Mapping[str, Any]) -> int:
    return value(config, KINDS[kind(config)][0])


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    _, levels, more = KINDS[kind(config)]
    return 2 ** (len(value(config, levels)) + more - 1)


def moments(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) -> mean and log variance (N, 2 C, h, w). Qwen-Image's VAE takes a picture as a film."""
    name = type(vae).__name__
    if name == "AutoencoderKLQwenImage":
        return vae.encode(images[:, :, None]).latent_dist.parameters[:, :, 0]
    if name == "AutoencoderDC":
        latents = vae.encode(images).latent
        return torch.cat([latents, torch.full_like(latents, CERTAIN)], dim=1)
    return vae.encode(images).latent_dist.parameters


def pictures(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Unscaled latents (N, C, h, w) -> pictures (N, 3, H, W)."""
    film = type(vae).__name__ == "AutoencoderKLQwenImage"
    return vae.decode(latents[:, :, None]).sample[:, :, 0] if film else vae.decode(latents).sample


def batch_norm(vae: Any) -> dict[str, list[float]]:
    """latents_mean and latents_std of FLUX.2's VAE, which keeps them as weights; on the meta device 0 and 1."""
    mean, variance = vae.bn.running_mean.float(), vae.bn.running_var.float()
    if mean.is_meta:
        return {"latents_mean": [0.0] * len(mean), "latents_std": [1.0] * len(mean)}
    return {"latents_mean": mean.tolist(), "latents_std": (variance + vae.config.batch_norm_eps).sqrt().tolist()}
