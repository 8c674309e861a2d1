"""The head of DiNa-LRM (arXiv 2602.11146): queries that look at the states of several blocks.

Modules bear the names of the published state dict, so that a checkpoint is loaded by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class States(NamedTuple):
    """After each of the blocks read: visual, (B, N, C) each, and text, (B, L, C) each. t: embedding of time, (B, C)."""

    visual: list[torch.Tensor]
    text: list[torch.Tensor]
    t: torch.Tensor


class LayerAdapter(nn.Module):
    """proj((1 + gamma) h + beta + layer_embed), [gamma, beta] = cond_mlp(t): FiLM by the embedding of time."""

    def __init__(self, size: int, width: int, out: int, projected: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(size, width) if projected or size != width else nn.Identity()
        self.layer_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.cond_mlp = nn.Sequential(nn.Linear(size, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.proj = nn.Linear(width, out)

    def forward(self, states: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        gamma, beta = self.cond_mlp(t)[:, None].chunk(2, dim=2)
        found: torch.Tensor = self.proj((1 + gamma) * self.proj_in(states) + beta + self.layer_embed)
        return found


class CrossAttention(nn.Module):
    """q + to_out(attention(q, visual) + attention(q, text)): one softmax for each stream, gated values if `gated`."""

    def __init__(self, width: int, heads: int, text: bool, gated: bool) -> None:
        super().__init__()
        self.heads, self.gated = heads, gated
        self.norm_q, self.to_q = nn.RMSNorm(width), nn.Linear(width, width)
        self.norm_v, self.norm_t = nn.RMSNorm(width), nn.RMSNorm(width) if text else None
        for stream in ["vis", "text"] if text else ["vis"]:
            self.add_module(f"to_k_{stream}", nn.Linear(width, width))
            self.add_module(f"to_v_{stream}", nn.Linear(width, width))
            if gated:
                gate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
                self.add_module(f"gate_{stream}", gate)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def attended(self, queries: torch.Tensor, tokens: torch.Tensor, stream: str) -> torch.Tensor:
        keys, values = (self.get_submodule(f"to_{name}_{stream}")(tokens) for name in "kv")
        if self.gated:
            values = values * self.get_submodule(f"gate_{stream}")(tokens).sigmoid()
        split = [x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values)]
        return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)

    def forward(self, queries: torch.Tensor, visual: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        q = self.to_q(self.norm_q(queries))
        found = self.attended(q, self.norm_v(visual), "vis")
        if self.norm_t is not None and text is not None:
            found = found + self.attended(q, self.norm_t(text), "text")
        added: torch.Tensor = self.to_out(found)
        return queries + added


class Head(nn.Module):
    """States of blocks -> a score.

    Args:
        size: C, the width of the states. width: of the head; -1 is C. queries, heads: their numbers.
        visual, text: how many blocks are read of each stream; text may be 0.
        projected: the states are projected before FiLM, although their width is the head's.
    """

    def __init__(
        self, size: int, visual: int, text: int, width: int, queries: int, heads: int, projected: bool
    ) -> None:
        super().__init__()
        width = size if width == -1 else width
        out = width // 4
        self.layer_adapters_visual, self.layer_adapters_text = (
            nn.ModuleList(LayerAdapter(size, width, out, projected) for _ in range(count)) for count in (visual, text)
        )
        self.agg_visual = nn.Linear(visual * out, width)
        self.agg_text = nn.Linear(text * out, width) if text else None
        self.query_tokens = nn.Parameter(torch.zeros(1, queries, width))
        self.attn1 = CrossAttention(width, heads, bool(text), gated=True)
        self.attn2 = CrossAttention(width, heads, False, gated=False)
        self.norm_ff = nn.RMSNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 1)

    def tokens(self, states: States) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The picture's tokens (B, N, width) and the text's (B, L, width)."""
        adapted = [
            [adapter(h, states.t) for adapter, h in zip(adapters, stream, strict=True)]
            for adapters, stream in (
                (self.layer_adapters_visual, states.visual), (self.layer_adapters_text, states.text)
            )
        ]  # fmt: skip
        text = None if self.agg_text is None else self.agg_text(torch.cat(adapted[1], dim=2))
        return self.agg_visual(torch.cat(adapted[0], dim=2)), text

    def forward(self, seen: Sequence[States]) -> torch.Tensor:
        """(B,), one score for what was seen of B latents: the tokens of all stand side by side."""
        parts = [self.tokens(states) for states in seen]
        visual = torch.cat([part[0] for part in parts], dim=1)
        words = [part[1] for part in parts if part[1] is not None]
        queries = self.query_tokens.expand(len(visual), -1, -1)
        queries = self.attn1(queries, visual, torch.cat(words, dim=1) if words else None)
        queries = self.attn2(queries, visual, None)
        queries = queries + self.ff(self.norm_ff(queries))
        scores: torch.Tensor = self.head(queries)
        return scores[:, :, 0].mean(dim=1)
