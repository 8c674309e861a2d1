"""Random weights in half precision, written as published files are: .safetensors, or a pickle of tensors.

    A matrix or a convolution    N(0, 1 / fan_in), so that activations neither vanish nor overflow in float16
    a scale of a norm            1
    a bias, or another vector    N(0, 0.02^2)

Shapes come from models on the meta device, so a model is never built: its tensors are drawn and saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

BYTES = 2  # of a weight
SCALE = math.log(100)  # CLIP's logit_scale, the one weight without a dimension
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Weights:
    """A file of weights that is not written yet. `pack` gives what a pickle holds; None writes .safetensors."""

    path: Path
    shapes: Shapes
    pack: Callable[[dict[str, torch.Tensor]], object] | None = None

    @property
    def bytes(self) -> int:
        return BYTES * sum(shape.numel() for shape in self.shapes.values())

    def write(self, generator: torch.Generator) -> None:
        """Draw the tensors in float16, one after the other, and write the file."""
        state = {name: draw(name, shape, generator) for name, shape in self.shapes.items()}
        if self.pack is None:
            save_file(state, self.path, {"format": "pt"})
        else:
            torch.save(self.pack(state), self.path)


def shapes_of(module: nn.Module) -> dict[str, torch.Size]:
    """Of every parameter, and of every buffer of floats that is saved with them; what is tied counts once."""
    saved = set(module.state_dict())
    buffers = {name: b for name, b in module.named_buffers() if name in saved and b.is_floating_point()}
    return {name: tensor.shape for name, tensor in (dict(module.named_parameters()) | buffers).items()}


def draw(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """One tensor of a model in float16, see above."""
    if not shape:
        return torch.tensor(SCALE).half()
    if len(shape) == 1 and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.float16)
    spread = 0.02 if len(shape) == 1 else shape[1:].numel() ** -0.5
    return torch.randn(shape, generator=generator).mul_(spread).half()
