"""Model families: the only rooms that import diffusers pipelines."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import parts
from lpo.families.family import Family
from lpo.families.latent_space import Codec, LatentSpace, load_codec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# model.family -> (its file in this room, its class there, the pipeline of diffusers that it is)
FAMILIES = {
    "sd": ("sd", "SD", "StableDiffusionPipeline"),
    "sdxl": ("sdxl", "SDXL", "StableDiffusionXLPipeline"),
    "sd3": ("dit.sd3", "SD3", "StableDiffusion3Pipeline"),
    "flux": ("dit.flux", "Flux", "FluxPipeline"),
    "flux2_klein": ("dit.flux2", "Flux2Klein", "Flux2KleinPipeline"),
    "qwen_image": ("dit.qwen_image", "QwenImage", "QwenImagePipeline"),
    "sana": ("dit.sana", "Sana", "SanaPipeline"),
    "z_image": ("dit.z_image", "ZImage", "ZImagePipeline"),
}


def family_class(name: str) -> Any:
    """The class of a family, a `Family` with a `load` of its own; its file is imported when it is first asked for."""
    file, cls, _ = FAMILIES[name]
    return getattr(import_module(f"lpo.families.{file}"), cls)


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
    settle(device, model.deterministic)
    cls, expected = family_class(model.family), FAMILIES[model.family][2]
    found = parts.pipeline_config(model.path).get("_class_name", expected)
    if found != expected:
        names = {pipeline: name for name, (_, _, pipeline) in FAMILIES.items()}
        remedy = f"set it to {names[found]}" if found in names else f"take a model of one of {', '.join(FAMILIES)}"
        raise LpoError(f"{model.path} is a {found}", f"params.yaml: model.family is {model.family}", remedy)
    own: dict[str, Any] = {"sampler": model.scheduler, "prediction_type": model.prediction_type}
    if cls.part == "transformer":
        own = {"form": model.flow_step, "layer": layer}
    parts_of = {"vae": model.vae, "denoiser": model.denoiser, "resolution": model.resolution, "shard": model.shard}
    family = cls.load(model.path, device, dtype, reward, **parts_of, **own)
    if model.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()
    if model.compile and not reward:
        family.denoiser.compile()
    return family


def codec_of(model: Model) -> Codec:
    """The VAE of a model; nothing else of it is loaded."""
    device = device_of(model)
    settle(device, model.deterministic)
    return load_codec(*parts.either(model.vae, model.path, "vae"), DTYPES[model.dtype], device)


def latent_space_of(model: Model) -> LatentSpace:
    """The latent space of a model; only its VAE is loaded."""
    return codec_of(model).space()


def settle(device: torch.device, deterministic: bool = False) -> None:
    """How this process computes from now on. The model that was loaded last decides; one without weights does not.

    A CPU makes the same twice: without this, gradients of gathered rows (a caption of several pairs) are sums whose
    order depends on threads. CUDA does so only with `deterministic`. Then every kernel is a repeatable one, attention's
    backward too, and an operation that has none raises RuntimeError. (With `warn_only` torch would take attention's
    fast backward, which is not repeatable, and warn once.) Otherwise torch chooses the fastest. CUDA uses TF32.
    """
    if device.type == "meta":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic or device.type == "cpu")
    # It costs time, and tells only of mistakes; torch gives the module no types.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # convolutions there take TF32 by default
