"""What every training loop here shares: one optimiser step, a learning rate schedule, saving and resuming."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpo.train import checkpoint


def cosine(step: int, total: int, warmup: int = 100) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def numpy_rng(seed: int, stream: str, step: int = 0) -> np.random.Generator:
    """The numpy twin of `checkpoint.generator`."""
    return np.random.default_rng(checkpoint.generator(seed, stream, step).initial_seed())


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


def save_training(
    folder: Path, step: int, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer,
    ema: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    tensors: dict[str, torch.Tensor] = checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(optimizer))
    for name, module in modules.items():
        tensors |= checkpoint.prefixed(name, module.state_dict())
    checkpoint.save(folder, step, tensors | checkpoint.prefixed("ema", ema or {}), {})


def resume_training(
    folder: Path, modules: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer,
    ema: dict[str, Any] | None = None,
) -> int:  # fmt: skip
    found = checkpoint.load(folder)
    if found is None:
        return 0
    step, tensors, _ = found
    for name, module in modules.items():
        module.load_state_dict(checkpoint.unprefixed(name, tensors))
    checkpoint.load_optimizer(optimizer, checkpoint.unprefixed("optimizer", tensors))
    if ema is not None:
        ema.update(checkpoint.unprefixed("ema", tensors))
    return step
