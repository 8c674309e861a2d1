"""What a request for scores holds: safetensors, checked before any of it reaches the model.

The layout is that of verl-omni's scorer of latents (protocol version 1), extended by prompts, images and timesteps:

    latents (N, C, h, w)   clean latents of unit scale; float32, float16 or bfloat16
    images (N, H, W, 3)    uint8, in place of latents
    prompts                JSON in the metadata: N strings, or one for all rows
    prompt_embeds (N, L, D), pooled_prompt_embeds (N, P)   in place of prompts
    u (N,)                 noise is added to level u in [0, 1], timestep u T; without it the reward's own ensemble
    seeds (N,)             int64, of the noise; 0 if absent
    timesteps (N,)         int64: the latents are noisy at these timesteps already and are scored as they are
    latent_space           JSON in the metadata: which VAE made the latents; refused if it is another one

Source: verl_omni/utils/reward_score/latent_http_scorer_client.py of verl-project/verl-omni.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from lpo.errors import LpoError
from lpo.families.latent_space import LatentSpace, check_same, space_of

VERSION = "1"
HEADER = "x-drm-protocol-version"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TENSORS = ("latents", "images", "prompt_embeds", "pooled_prompt_embeds", "u", "seeds", "timesteps")
LONGEST_PROMPT = 10_000  # characters; the model's own tokenizer cuts far earlier
LARGEST_SIDE = 4096  # pixels
DOCUMENTED = "see docs/serving.md"


@dataclass(frozen=True)
class Served:
    """What the model takes. embeddings: shapes of prompt_embeds and pooled_prompt_embeds, None if it takes none."""

    latent_shape: tuple[int, ...]
    space: LatentSpace
    timesteps: int
    max_rows: int
    embeddings: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Key:
    """What rows of one batch have in common. seed: that of the ensemble's noise, which all its rows share."""

    images: bool
    embeddings: bool
    noise: Literal["ensemble", "level", "none"]
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """x: latents (C, h, w) or image (H, W, 3). time: u, or a timestep, or None."""

    x: torch.Tensor
    text: str | tuple[torch.Tensor, torch.Tensor]
    time: float | None
    seed: int


def read(body: bytes, served: Served) -> list[tuple[Key, Row]]:
    """The rows of a request.

    Raises:
        LpoError: if anything is missing, unknown, of another type or shape, not finite, or of another latent space.
    """
    tensors, metadata = _parse(body)
    unknown = sorted(set(tensors) - set(TENSORS))
    if unknown:
        raise LpoError(f"unknown tensors: {', '.join(unknown)}", "request", f"send {', '.join(TENSORS)}")
    name = "images" if "images" in tensors else "latents"
    if ("images" in tensors) == ("latents" in tensors):
        raise LpoError("a request holds either latents or images", "request", DOCUMENTED)
    x = tensors[name]
    if name == "latents" and x.ndim == 3:
        x = x[None]
    count = len(x) if x.ndim else 0
    if not 1 <= count <= served.max_rows:
        raise LpoError(f"{count} rows; a request holds 1 to {served.max_rows}", name, "split the request")
    _check_x(name, x, served, metadata)
    texts = _texts(tensors, metadata, count, served)
    noise, times = _times(tensors, count, served, name)
    seeds = _seeds(tensors, count)
    key_seed = noise == "ensemble"
    return [
        (
            Key(name == "images", isinstance(texts[i], tuple), noise, seeds[i] if key_seed else 0),
            Row(x[i], texts[i], times[i], seeds[i]),
        )
        for i in range(count)
    ]


def _parse(body: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        tensors = load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise LpoError(f"the body is not safetensors: {error}", "request", DOCUMENTED) from error
    return tensors, header.get("__metadata__", {})


def _check_x(name: str, x: torch.Tensor, served: Served, metadata: Mapping[str, str]) -> None:
    if name == "images":
        fits = x.ndim == 4 and x.shape[3] == 3 and min(x.shape[1:3]) >= 1 and max(x.shape[1:3]) <= LARGEST_SIDE
        if x.dtype != torch.uint8 or not fits:
            shape = f"(N, H, W, 3) uint8, sides up to {LARGEST_SIDE}"
            raise LpoError(f"images are {_said(x)}, not {shape}", name, "send decoded RGB images")
        return
    if x.dtype not in FLOATS or tuple(x.shape[1:]) != served.latent_shape:
        expected = f"(N, {', '.join(map(str, served.latent_shape))}) float32, float16 or bfloat16"
        raise LpoError(f"latents are {_said(x)}, not {expected}", name, "send latents of the model that was tuned")
    _check_finite(name, x)
    if "latent_space" in metadata:
        try:
            space = space_of(json.loads(metadata["latent_space"]))
        except (ValueError, TypeError, KeyError) as error:
            raise LpoError(f"latent_space is broken: {error}", "metadata", DOCUMENTED) from error
        check_same(served.space, space, "metadata: latent_space")


def _texts(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], count: int, served: Served) -> list[Any]:
    names = ("prompt_embeds", "pooled_prompt_embeds")
    given = [name for name in names if name in tensors]
    if given and "prompts" in metadata:
        raise LpoError("a request holds either prompts or prompt_embeds", "request", DOCUMENTED)
    if not given:
        return _prompts(metadata, count)
    if served.embeddings is None:
        remedy = (
            "send prompts in the metadata, or start the service with --embeddings if that is right (docs/serving.md)"
        )
        raise LpoError("this reward reads prompts with text encoders of its own", "prompt_embeds", remedy)
    if len(given) < 2:
        raise LpoError(f"{given[0]} came alone", given[0], f"send {' and '.join(names)}")
    for name, shape in zip(names, served.embeddings, strict=True):
        tensor = tensors[name]
        if tensor.dtype not in FLOATS or tuple(tensor.shape) != (count, *shape):
            expected = f"({', '.join(map(str, (count, *shape)))}) float32, float16 or bfloat16"
            raise LpoError(f"{name} is {_said(tensor)}, not {expected}", name, "encode as the base model does")
        _check_finite(name, tensor)
    return list(zip(tensors[names[0]], tensors[names[1]], strict=True))


def _prompts(metadata: Mapping[str, str], count: int) -> list[str]:
    try:
        prompts = json.loads(metadata.get("prompts", "null"))
    except ValueError as error:
        raise LpoError(f"prompts are not JSON: {error}", "metadata: prompts", DOCUMENTED) from error
    prompts = [prompts] * count if isinstance(prompts, str) else prompts
    if not isinstance(prompts, list) or not all(isinstance(text, str) for text in prompts) or len(prompts) != count:
        what = f"prompts must be a JSON list of {count} strings, or one string"
        raise LpoError(what, "metadata: prompts", DOCUMENTED)
    longest = max(map(len, prompts))
    if longest > LONGEST_PROMPT:
        raise LpoError(f"a prompt has {longest} characters", "metadata: prompts", f"send at most {LONGEST_PROMPT}")
    return prompts


def _times(
    tensors: Mapping[str, torch.Tensor], count: int, served: Served, name: str
) -> tuple[Literal["ensemble", "level", "none"], list[float | None]]:
    given = [key for key in ("u", "timesteps") if key in tensors]
    if not given:
        return "ensemble", [None] * count
    if len(given) == 2:
        raise LpoError("u adds noise, and timesteps says that it is there", "request", "send one of them")
    key, tensor = given[0], tensors[given[0]]
    low, high = (0.0, 1.0) if key == "u" else (0, served.timesteps - 1)
    kinds = FLOATS if key == "u" else (torch.int64,)
    if (
        tensor.dtype not in kinds
        or tuple(tensor.shape) != (count,)
        or not bool(((tensor >= low) & (tensor <= high)).all())
    ):
        raise LpoError(f"{key} must be ({count},) {kinds[0]} from {low} to {high}", key, DOCUMENTED)
    if key == "timesteps" and name == "images":
        raise LpoError("timesteps belong to noisy latents, and images came", key, "send u, or latents")
    return ("level" if key == "u" else "none"), [float(value) for value in tensor]


def _seeds(tensors: Mapping[str, torch.Tensor], count: int) -> list[int]:
    if "seeds" not in tensors:
        return [0] * count
    seeds = tensors["seeds"]
    if seeds.dtype != torch.int64 or tuple(seeds.shape) != (count,):
        raise LpoError(f"seeds are {_said(seeds)}, not ({count},) int64", "seeds", DOCUMENTED)
    return [int(seed) for seed in seeds]


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    bad = int((~tensor.isfinite().flatten(1).all(1)).sum())
    if bad:
        raise LpoError(f"{bad} of {len(tensor)} rows are NaN or infinite", name, "find out where they became so")


def _said(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
