"""Parts of a training loop: optimiser, one step of it, learning rate schedule, moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch


def cosine(step: int, total: int, warmup: int = 100) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def adamw(weights: Sequence[torch.Tensor], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; on CUDA a step is one kernel over all weights, elsewhere torch chooses."""
    fused = True if weights[0].device.type == "cuda" else None
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float, max_grad_norm: float | None = 1.0
) -> None:
    """Backward, clip (None: don't, as the published runs in effect did not), step, at this learning rate."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    apply_gradients(optimizer, learning_rate, max_grad_norm)


def apply_gradients(
    optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float | None = 1.0
) -> None:
    """The second half of `optimizer_step`, for gradients that were summed over several backward passes."""
    optimizer.param_groups[0]["lr"] = learning_rate
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm or math.inf)
    optimizer.step()


@torch.no_grad()
def update_ema(ema: dict[str, torch.Tensor], named: Mapping[str, torch.Tensor], decay: float) -> None:
    """ema <- decay ema + (1 - decay) value, in place."""
    torch._foreach_lerp_([ema[name] for name in named], [value.detach() for value in named.values()], 1 - decay)
