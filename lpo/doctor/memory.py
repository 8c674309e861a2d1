"""Bytes that are alive at one time, counted on the meta device; `stages.py` counts every stage with it.

A tensor on the meta device has a shape and no memory, so a step of a training runs there in seconds, whatever the size
of the model. Counted are the bytes of every storage alive at one time. What a real device adds (the allocator's
rounding, work space of kernels, the CUDA context: together some GB) is not counted. Attention is taken to be fused: it
keeps queries, keys, values and output, and never the matrix of all pairs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lpo.config import Model
from lpo.families.parts import local

META = torch.device("meta")


@dataclass(frozen=True)
class Need:
    """Bytes of one stage, moment by moment, and what goes to disk, each with DVC's copy in its cache.

    moments: name -> (weights and what training keeps of them, the most that is made beside them). The stage needs the
    largest sum.
    disk: that of encode is of 1000 pictures; elsewhere it is the artifact, and a checkpoint with its successor.
    host: what a training on a GPU keeps in host memory, beside the libraries.
    """

    stage: str
    moments: Mapping[str, tuple[int, int]]
    disk: int
    host: int = 0

    @property
    def weights(self) -> int:
        return max(self.moments.values(), key=sum)[0]

    @property
    def step(self) -> int:
        return max(self.moments.values(), key=sum)[1]

    @property
    def total(self) -> int:
        return self.weights + self.step


def configured(model: Model) -> Model:
    """The model with configurations in the place of hub ids, where lpo/presets/models has them."""
    names = {"path": model.path, "vae": model.vae, "denoiser": model.denoiser}
    return replace(model, **{key: local(source) for key, source in names.items()})  # type: ignore[arg-type]


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside and that are alive; `peak` is the most at one time.

    On any device. A view of what was there before costs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.seen:
                self.count(storage)
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for leaf in tree.values():
            yield from _tensors(leaf)
    elif isinstance(tree, (list, tuple)):
        for leaf in tree:
            yield from _tensors(leaf)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_grad: torch.Tensor) -> Any:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _Fused.apply(query, key, value)


@contextmanager
def attention_as(function: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, `function` is torch's attention. A mode of torch would miss what checkpointing computes again."""
    before, F.scaled_dot_product_attention = F.scaled_dot_product_attention, function
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def peak(step: Callable[[], torch.Tensor], backward: bool = False) -> int:
    """Bytes that a step makes, at most at one time; with `backward` through its result."""
    with attention_as(_fused), Alive() as alive, torch.set_grad_enabled(backward):
        result = step()
        if backward:
            result.float().sum().backward()
        return alive.peak


def bytes_of(*modules: nn.Module) -> int:
    """Of parameters and buffers, each once."""
    held = {id(t): t.nbytes for part in modules for t in [*part.parameters(), *part.buffers()]}
    return sum(held.values())
