"""A dynamic loss scale for float16 (Micikevicius et al., arXiv 1710.03740, section 3.2).

    backward(scale * loss),   gradient <- gradient / scale

Gradients of a float16 backward pass below 2^-24 become zero, and those near it lose their digits. Multiplied by the
scale they lie where float16 is exact. A step whose gradients are NaN or infinite is skipped and the scale is halved;
after INTERVAL steps without one it is doubled. These are the numbers of torch.amp.GradScaler, which accelerate, and
so the published code, uses. GradScaler itself works per device and per optimiser and keeps its skips to itself; this
one works on any device, counts what it skips, and fits into a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

FIRST = 2.0**16
LEAST = 1.0  # gradients that overflow without a scale are not the scale's fault
INTERVAL = 2000


class LossScale:
    """The scale of one training. For other dtypes than float16 it is off: it changes nothing and skips nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.on = dtype == torch.float16
        self.value = FIRST if self.on else 1.0
        self.good, self.skipped = 0, 0  # steps since the scale last changed, and steps skipped in all

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.value if self.on else loss

    def unscale(self, weights: Sequence[torch.Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if self.on and gradients:
            torch._foreach_div_(gradients, self.value)

    def skips(self, finite: bool) -> bool:
        """Whether to skip a step with these gradients; the scale follows. Call it once a step.

        Several processes call it after their gradients were summed. The sum is the same everywhere, so they agree.
        """
        if not self.on or (not finite and self.value <= LEAST):
            return False
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value, self.skipped = max(self.value / 2, LEAST), self.skipped + 1
        elif self.good == INTERVAL:
            self.value, self.good = self.value * 2, 0
        return not finite

    @property
    def figures(self) -> dict[str, float]:
        """What a history shows of it; nothing where it is off."""
        return {"loss_scale": self.value, "skipped": self.skipped} if self.on else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; nothing where it is off."""
        return {"loss_scale": {"value": self.value, "good": self.good, "skipped": self.skipped}} if self.on else {}

    def load(self, meta: Mapping[str, Any]) -> None:
        """Go back to the `state` in a checkpoint's meta."""
        if self.on:
            held = meta["loss_scale"]
            self.value, self.good, self.skipped = held["value"], held["good"], held["skipped"]
