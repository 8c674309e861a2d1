"""Conditioning: everything that belongs to prompts, opaque outside its family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Conditioning:
    """Tensors of B prompts, each with the prompts along its first dimension.

    tensors: what the family's denoiser reads (prompt_embeds, and for other families pooled embeddings, time ids, ...).
    pooled: (B, D) the text feature f_eos that a reward projects (LPO paper, eq. for T).
    """

    tensors: Mapping[str, torch.Tensor]
    pooled: torch.Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, index: torch.Tensor | slice | list[int]) -> Conditioning:
        return Conditioning({k: v[index] for k, v in self.tensors.items()}, self.pooled[index])

    def repeat(self, n: int) -> Conditioning:
        """Each prompt n times in a row: (B,) -> (B n,)."""
        repeated = {k: v.repeat_interleave(n, dim=0) for k, v in self.tensors.items()}
        return Conditioning(repeated, self.pooled.repeat_interleave(n, dim=0))

    def expand(self, n: int) -> Conditioning:
        """A single prompt n times, without copying."""
        expanded = {k: v.expand(n, *v.shape[1:]) for k, v in self.tensors.items()}
        return Conditioning(expanded, self.pooled.expand(n, -1))

    def to(self, device: torch.device) -> Conditioning:
        return Conditioning({k: v.to(device) for k, v in self.tensors.items()}, self.pooled.to(device))


def concatenate(*parts: Conditioning) -> Conditioning:
    keys = parts[0].tensors
    return Conditioning(
        {k: torch.cat([p.tensors[k] for p in parts]) for k in keys}, torch.cat([p.pooled for p in parts])
    )
