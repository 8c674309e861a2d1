"""What a trainer learns from: steps of the sampler with the candidates that were chosen, noised finished latents, or
groups of finished latents under one noise, such as stored pairs.

All are indexed by rows, and have `t` (N,) and `prompt` (N,), the rows of the conditioning that belongs to them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import torch

Batch = TypeVar("Batch", "Steps", "NoisyGroups", "Finished")


def length(batch: Steps | NoisyGroups | Finished) -> int:
    return len(batch.t)


def take(batch: Batch, index: torch.Tensor) -> Batch:
    """The rows `index` of every tensor."""
    return type(batch)(*(getattr(batch, f.name)[index] for f in fields(batch)))


@dataclass(frozen=True)
class Steps:
    """N steps x_t -> x_s of the sampler with M chosen candidates each, the best one first and the worst one last.

    x_t: (N, C, h, w). x_s: (N, M, C, h, w). advantage: (N, M). log_p: (N, M), log density of x_s under the policy
    that drew it. t, s: (N,), s = -1 after the last step. prompt: (N,).
    """

    x_t: torch.Tensor
    x_s: torch.Tensor
    advantage: torch.Tensor
    log_p: torch.Tensor
    t: torch.Tensor
    s: torch.Tensor
    prompt: torch.Tensor

    __len__ = length
    __getitem__ = take

    def to(self, device: torch.device) -> Steps:
        return Steps(*(getattr(self, f.name).to(device) for f in fields(self)))

    @property
    def best(self) -> torch.Tensor:
        """(N, C, h, w)."""
        return self.x_s[:, 0]

    @property
    def worst(self) -> torch.Tensor:
        """(N, C, h, w)."""
        return self.x_s[:, -1]


@dataclass(frozen=True)
class NoisyGroups:
    """N groups of M finished latents, each group under one noise: x_t (N, M, C, h, w) at t (N,), noise (N, C, h, w).

    advantage: (N, M). Of a stored pair M is 2, the chosen one comes first, and its advantage is 1 or that of a soft
    label, the other's the negative. Of a single vote M is 1, and the advantage is 1 or -1.
    """

    x_t: torch.Tensor
    noise: torch.Tensor
    advantage: torch.Tensor
    t: torch.Tensor
    prompt: torch.Tensor

    __len__ = length
    __getitem__ = take

    def to(self, device: torch.device) -> NoisyGroups:
        return NoisyGroups(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True)
class Finished:
    """N finished latents, noised: x_t (N, C, h, w) at t (N,).

    old: (N, C, h, w), the output of the adapter that drew them. target: (N, C, h, w), the output that would give the
    latent back, and slope (N,), d x0 / d output. r: (N,), how good the latent is among those of its prompt, 0 to 1.
    """

    x_t: torch.Tensor
    old: torch.Tensor
    target: torch.Tensor
    slope: torch.Tensor
    r: torch.Tensor
    t: torch.Tensor
    prompt: torch.Tensor

    __len__ = length
    __getitem__ = take

    def to(self, device: torch.device) -> Finished:
        return Finished(*(getattr(self, f.name).to(device) for f in fields(self)))


def concatenate(parts: list[Batch]) -> Batch:
    """The rows of all parts, in their order."""
    kind = type(parts[0])
    return kind(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(kind)))
