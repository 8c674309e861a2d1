"""Model families: the only rooms that import diffusers pipelines."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import parts, sd, sd3, sdxl
from lpo.families.family import Family
from lpo.families.latent_space import Codec, LatentSpace, load_codec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LOADERS: dict[str, Callable[..., Family]] = {"sd": sd.load, "sdxl": sdxl.load, "sd3": sd3.load}
PIPELINES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
}


def device_of(model: Model) -> torch.device:
    """`auto` is cuda where there is one. Raises LpoError for a cuda that isn't there."""
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model.device == "cuda" and not torch.cuda.is_available():
        raise LpoError("no CUDA device here", "params.yaml: model.device", "set it to auto or cpu")
    return torch.device(model.device)


def load_family(
    model: Model, reward: bool = False, layer: int | None = None, dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Family:  # fmt: skip
    """The family object of `model`; with `reward` only what a reward's backbone needs.

    Args:
        layer: of a transformer, whose output a reward reads.
        dtype, device: in place of the model's.

    Raises:
        LpoError: if the model isn't there, or is of another family.
    """
    dtype, device = dtype or DTYPES[model.dtype], device or device_of(model)
    settle(device)
    found = parts.pipeline_config(model.path).get("_class_name", PIPELINES[model.family])
    if found != PIPELINES[model.family]:
        names = {pipeline: name for name, pipeline in PIPELINES.items()}
        remedy = f"set it to {names[found]}" if found in names else "take a model of the families sd, sdxl or sd3"
        raise LpoError(f"{model.path} is a {found}", f"params.yaml: model.family is {model.family}", remedy)
    own: dict[str, Any] = {"sampler": model.scheduler, "prediction_type": model.prediction_type}
    if model.family == "sd3":
        own = {"form": model.flow_step, "layer": layer}
    parts_of = {"vae": model.vae, "denoiser": model.denoiser, "resolution": model.resolution, "shard": model.shard}
    family = LOADERS[model.family](model.path, device, dtype, reward, **parts_of, **own)
    if model.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()
    if model.compile and not reward:
        family.denoiser.compile()
    return family


def codec_of(model: Model) -> Codec:
    """The VAE of a model; nothing else of it is loaded."""
    device = device_of(model)
    settle(device)
    return load_codec(*parts.either(model.vae, model.path, "vae"), DTYPES[model.dtype], device)


def latent_space_of(model: Model) -> LatentSpace:
    """The latent space of a model; only its VAE is loaded."""
    return codec_of(model).space()


def settle(device: torch.device) -> None:
    """How this process computes from now on: twice the same, and on CUDA with TF32.

    Without it gradients of gathered rows (a caption of several pairs) are sums whose order depends on threads. Where
    CUDA has no repeatable kernel, torch warns: wherever there is CUDA, whatever was loaded last.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # It costs time, and tells only of mistakes; torch gives the module no types.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # convolutions there take TF32 by default
