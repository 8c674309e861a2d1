"""Frozen modules that wait in host memory while others need the GPU's, and only where it is short.

A module's weights are copied to pinned host memory once. To leave the GPU it then takes that copy, and nothing is
copied; to come back it copies to the GPU, and the host does not wait. Frozen weights are never copied back to the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

ROOM = 0.9  # of the GPU's memory that may be in use: what it has beyond is the allocator's and the kernels'
_COPIES = WeakIdKeyDictionary()  # weight -> its copy in host memory
_PEAKS: dict[str, int] = {}  # purpose -> the most bytes that were in use once it had run


@contextmanager
def away(modules: Sequence[nn.Module], device: torch.device, purpose: str) -> Iterator[None]:
    """Inside, `modules` wait in host memory if the GPU's would be short with them. Of other devices nothing is moved.

    Nobody knows before the first run of a `purpose` what it takes, so then they go. Afterwards they stay if the most
    that was ever in use, and they, fit into ROOM of the memory. Results don't depend on it.

    Raises:
        ValueError: if one of the modules trains: its copy would be older than it is.
    """
    if device.type != "cuda" or (purpose in _PEAKS and not short(_PEAKS[purpose], modules, device)):
        yield
        return
    leave(modules)
    try:
        yield
    finally:
        _PEAKS[purpose] = torch.cuda.max_memory_allocated(device)
        come_back(modules, device)


def short(peak: int, modules: Sequence[nn.Module], device: torch.device) -> bool:
    size = sum(tensor.nbytes for tensor in _tensors(modules))
    return peak + size > ROOM * torch.cuda.get_device_properties(device).total_memory


def leave(modules: Sequence[nn.Module]) -> None:
    """Put the copies in host memory in the place of the weights, and make them where there are none yet."""
    tensors = list(_tensors(modules))
    if any(tensor.requires_grad for tensor in tensors):
        raise ValueError("a module that trains can't wait in host memory")
    for tensor in tensors:
        if tensor not in _COPIES:
            copy = torch.empty_like(tensor, device="cpu", pin_memory=torch.cuda.is_available())
            _COPIES[tensor] = copy.copy_(tensor.detach())
    for tensor in tensors:
        tensor.data = _COPIES[tensor]


def come_back(modules: Sequence[nn.Module], device: torch.device) -> None:
    for tensor in _tensors(modules):
        tensor.data = _COPIES[tensor].to(device, non_blocking=True)


def _tensors(modules: Sequence[nn.Module]) -> Iterator[torch.Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
