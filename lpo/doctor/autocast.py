"""CUDA's autocast on the meta device, which has none: which tensors become half precision, and which float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F

HALF, WIDE = ("linear", "conv2d"), ("group_norm", "layer_norm")  # of torch's lists, what the models here call


@contextmanager
def autocast_as(dtype: torch.dtype) -> Iterator[None]:
    """Inside, linear layers and convolutions run in `dtype` and norms in float32, as under `torch.autocast("cuda")`.

    A weight that trains is cast once for all of its uses. Every copy lives as long as backward needs it: torch drops
    its own list of copies when the context of the forward pass ends. Here the context reaches over backward, where
    checkpointing runs the forward pass again. Functions are replaced, since a mode of torch would miss that.
    """
    if dtype == torch.float32:
        yield
        return
    copies: WeakValueDictionary[int, torch.Tensor] = WeakValueDictionary()

    def half(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        copy = copies.get(id(value))
        if copy is None:
            copies[id(value)] = copy = value.to(dtype)
        return copy

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) else value

    before = {name: getattr(F, name) for name in HALF + WIDE}
    for names, cast in ((HALF, half), (WIDE, wide)):
        for name in names:
            setattr(F, name, _casting(before[name], cast))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)


def _casting(function: Callable[..., torch.Tensor], cast: Callable[[Any], Any]) -> Callable[..., torch.Tensor]:
    def call(*values: Any, **named: Any) -> torch.Tensor:
        return function(*(cast(value) for value in values), **{name: cast(value) for name, value in named.items()})

    return call
