"""What a batch of rows is on the meta device, and what one prompt, one latent and one picture take."""

from __future__ import annotations

import math

import torch
from torch import nn

from lpo.config import Params
from lpo.doctor.memory import META, peak
from lpo.families import sharding
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family

DVC = 2  # copies of a stage's output: in the workspace and in DVC's cache
ADAM = 4 + 8  # bytes a trained weight: its gradient and two moments, float32
SMALL = 2**20  # bytes a row for what is small beside a model: pooled states, embeddings, densities
FINITE = 7  # bytes a number for a moment, where a tensor is asked whether it is finite before it is saved


def ids(family: Family, n: int) -> torch.Tensor:
    return torch.zeros(n, family.token_columns, dtype=torch.long, device=META)


def inputs(family: Family, n: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Latents, timesteps and conditioning of n rows."""
    with torch.no_grad():
        text = family.encode_tokens(ids(family, n))
    latents = torch.empty(n, *family.latent_shape, device=META, dtype=family.dtype)
    return latents, torch.zeros(n, device=META, dtype=torch.long), text


def of_text(family: Family) -> int:
    """Bytes of one prompt's conditioning."""
    text = inputs(family, 1)[2]
    return sum(part.nbytes for part in [*text.tensors.values(), text.pooled])


def of_latent(family: Family) -> int:
    """Bytes of one picture's latents."""
    return math.prod(family.latent_shape) * family.dtype.itemsize


def encoding(family: Family, n: int) -> int:
    """Bytes that it takes to encode n prompts at once."""
    return peak(lambda: family.encode_tokens(ids(family, n)).pooled)


def drawing(family: Family, batch: int, scale: float) -> int:
    """The larger one of a guided forward and decoding, with x, its noise and its mean in float32."""
    latents, t, text = inputs(family, batch)
    guided = peak(lambda: family.guided(latents, t, text, text[:1], scale))
    words = batch * of_text(family)
    return max(guided, peak(lambda: family.decode(latents))) + words + 4 * 4 * latents.numel()


def pictures(family: Family, n: int) -> torch.Tensor:
    """n pictures as the host sends them, float32."""
    return torch.empty(n, 3, family.pixels, family.pixels, device=META)


def elsewhere(params: Params, *denoisers: nn.Module) -> int:
    """How many weights other GPUs hold: with model.shard all GPUs here, a process each, share out what is frozen."""
    blocks = [block for denoiser in denoisers for block in sharding.blocks(denoiser)]
    shared = sum(p.numel() for block in blocks for p in block.parameters() if not p.requires_grad)
    return shared - shared // max(torch.cuda.device_count(), 1) if params.model.shard else 0
