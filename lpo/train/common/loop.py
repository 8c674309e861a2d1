"""Parts of a training loop: optimiser, one step of it, learning rate schedule, moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from lpo.errors import NotFinite
from lpo.train.common.loss_scale import LossScale


def cosine(step: int, total: int, warmup: int = 100) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def warmup_share(step: int, total: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at a step, counted from 0, of `total` steps.

        linear         min(1, (step + 1) / warmup) (1 - step / total)
        warmup_decay   log(step + 1) / log(warmup) while step < warmup, then (total - step) / (total - warmup)

    The second one is DeepSpeed's WarmupDecayLR with its default logarithmic warm-up, which the published reward
    trainers of LPO and SPO use: it reaches the full peak, and the first step has a rate of zero.
    """
    if schedule == "linear":
        return min(1.0, (step + 1) / max(warmup, 1)) * (1 - step / total)
    if step < warmup:
        return math.log(step + 1) / math.log(max(warmup, 2))
    return (total - step) / max(total - warmup, 1)


def adamw(weights: Sequence[torch.Tensor], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; on CUDA a step is one kernel over all weights, elsewhere torch chooses."""
    fused = True if weights[0].device.type == "cuda" else None
    return torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def optimizer_step(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, learning_rate: float, max_grad_norm: float | None = 1.0
) -> None:
    """Backward, clip (None: do not), step, at this learning rate."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    apply_gradients(optimizer, learning_rate, max_grad_norm)


def apply_gradients(
    optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float | None = 1.0,
    where: str = "a training step", section: str = "pretrain", scale: LossScale | None = None,
) -> bool:  # fmt: skip
    """The second half of `optimizer_step`, for gradients that were summed over several backward passes.

    scale: of the losses that these are the gradients of.

    Returns whether the weights changed: the scale skips a step whose gradients overflow because of it.

    Raises:
        NotFinite: if a gradient is NaN or infinite and no scale explains it, before any weight has changed. `where` is
            the step, `section` the one of params.yaml that it reads.
    """
    optimizer.param_groups[0]["lr"] = learning_rate
    weights = optimizer.param_groups[0]["params"]
    if scale is not None:
        scale.unscale(weights)
    norm = torch.nn.utils.clip_grad_norm_(weights, max_grad_norm or math.inf)
    if scale is not None and scale.skips(norm.is_meta or math.isfinite(norm)):
        return False
    check_number(norm, "gradient", where, section)
    optimizer.step()
    return True


def check_number(value: torch.Tensor | float, name: str, where: str, section: str) -> None:
    """Stop a training at a number that is none; on the meta device there are no numbers.

    Raises:
        NotFinite: with the step and the likely causes.
    """
    if (isinstance(value, torch.Tensor) and value.is_meta) or math.isfinite(value):
        return
    causes = (
        f"lower {section}.learning_rate; clip gradients ({section}.max_grad_norm: 1.0); set {section}.dtype or "
        "model.dtype to bf16 or fp32, where half precision overflows. The last good checkpoint is kept"
    )
    raise NotFinite(f"the training diverged: its {name} is {float(value)}", where, causes)


@torch.no_grad()
def update_ema(ema: dict[str, torch.Tensor], named: Mapping[str, torch.Tensor], decay: float) -> None:
    """ema <- decay ema + (1 - decay) value, in place."""
    torch._foreach_lerp_([ema[name] for name in named], [value.detach() for value in named.values()], 1 - decay)
