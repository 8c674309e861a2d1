"""What the next step needs, made while this one runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(step)` for one step after the other; where it is on, a thread makes the next step's meanwhile.

    It is on where a GPU computes: its host is idle. On a CPU the thread would take its cores. `make` must depend on
    the step alone, so that a resumed training gets the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.on = device.type == "cuda"
        self.made: dict[int, Future[T]] = {}
        settle = partial(torch.cuda.set_device, torch.cuda.current_device()) if self.on else None  # not the first GPU
        self.thread = ThreadPoolExecutor(1, "ahead", settle)  # it starts with the first task

    def __call__(self, make: Callable[[int], T], step: int, steps: int) -> T:
        """The result for `step`; a failure in the thread is raised here. After the last of `steps` nothing is made."""
        future = self.made.pop(step, None)
        found = make(step) if future is None else future.result()
        if self.on and step + 1 < steps:
            self.made = {step + 1: self.thread.submit(make, step + 1)}
        return found


def sent(values: torch.Tensor, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of the host on the device, in `dtype` if it is given. The host does not wait until it is there."""
    return pinned(values.to(dtype or values.dtype)).to(device, non_blocking=True)


def pinned(values: torch.Tensor) -> torch.Tensor:
    """In pinned memory where there is CUDA, from which a copy to the GPU needs no host."""
    return values.pin_memory() if torch.cuda.is_available() else values
