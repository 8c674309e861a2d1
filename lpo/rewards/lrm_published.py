"""The published latent reward models (Kwai-Kolors/LPO; hub id casiatao/LRM) as ours.

A published folder holds unet/, text_encoder/ and, of LRM-XL, text_encoder_2/, in diffusers' and transformers' layout,
and state_dict.pt with the keys visual_projection, text_projection (LRM-1.5 only) and logit_scale. What it leaves out,
tokenizers, scheduler and VAE, is the base model's. Both were trained with enhancement of the mid block at 7.5.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import DTYPES, device_of, latent_space_of, load_family, parts
from lpo.hub import find, weights_of
from lpo.rewards import dina, lrm
from lpo.rewards.dina import DinaReward
from lpo.rewards.lrm import LatentRewardModel

GUIDANCE_SCALE = 7.5


def load_reward(source: str, base: Model) -> LatentRewardModel | DinaReward:
    """Ours (a folder with config.json) or a published one. `base` is the model that a published one grew from."""
    if dina.config_of(source) is not None:
        return dina.load(source, load_family(base))
    if (Path(source) / "config.json").exists():
        return lrm.load(Path(source), device_of(base), DTYPES[base.dtype])
    return load(source, base)


def load(source: str, base: Model) -> LatentRewardModel:
    """A published reward, frozen, in the dtype and on the device of `base`.

    Raises:
        LpoError: if parts are missing or don't fit, or if state_dict.pt holds more than tensors.
    """
    state = read_state(source)
    backbone = load_family(replace(base, denoiser=f"{source}/unet"), reward=True)
    device, dtype = backbone.device, backbone.dtype
    own = {
        f"text_encoder{suffix}": parts.module(encoder.model, source, f"text_encoder{suffix}", dtype, device)
        for suffix, encoder in backbone.encoders.items()
    }
    backbone = replace(backbone, text_encoders=own)
    heads = {"logit_scale": scale_of(state), "visual_projection.weight": weight_of(state)}
    if "text_projection" in state:
        heads["text_projection.weight"] = state["text_projection"]["weight"].float()
    wide = lrm.probe_widths(backbone, "multi_scale")[0] == heads["visual_projection.weight"].shape[1]
    model = LatentRewardModel(
        backbone, len(heads["visual_projection.weight"]), GUIDANCE_SCALE, "multi_scale" if wide else "mid",
        "random" if "text_projection" in state else "none", latent_space_of(replace(base, denoiser=None)),
    )  # fmt: skip
    try:
        lrm.load_heads(model, heads)
    except RuntimeError as error:
        raise LpoError(f"not a latent reward model of {base.path}: {error}", source, "set reward.base") from error
    return model.requires_grad_(False).eval()


def scale_of(state: dict[str, Any]) -> torch.Tensor:
    """logit_scale, (): the released reward holds a tensor, the published trainers write a number."""
    return torch.as_tensor(state["logit_scale"], dtype=torch.float32).reshape(())


def weight_of(state: dict[str, Any]) -> torch.Tensor:
    return state["visual_projection"]["weight"].float()


def read_state(source: str) -> dict[str, Any]:
    """state_dict.pt, read so that it can hold tensors only. Raises LpoError for anything else."""
    root, inside = parts.split_source(source)
    name = f"{inside}/state_dict.pt".lstrip("/")
    file = find(root, name)
    if file is None:
        raise LpoError("no latent reward model here", source, "name a folder with config.json or state_dict.pt")
    state = weights_of(file)
    missing = {"visual_projection", "logit_scale"} - set(state if isinstance(state, dict) else ())
    if missing:
        raise LpoError(f"state_dict.pt lacks {', '.join(sorted(missing))}", source, "take a published reward model")
    return state
