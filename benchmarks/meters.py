"""What is measured: floating point operations, live bytes, seconds, and what the device can do at best.

    with Flops() as flops: ...          flops.total, exact: every multiplication and addition of matmuls, convolutions
    with LiveBytes() as memory: ...     memory.peak, bytes of all tensors alive at once inside, on any device
    seconds(function, device)           wall time of one call

FLOPs and bytes need no device: on the meta device they are those of the full size. Attention is counted as one fused
operation, as it runs on a GPU and on a CPU: it keeps its inputs and its output, not the matrix of weights.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
Shape = tuple[int, ...]


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Q K^T and the weighted sum: 2 B h L S (d + d_v)."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *a: Any, **kw: Any) -> int:
    """Q K^T once more, then the gradients of the weights, of V, of Q and of K: 5 products where forward has 2."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


class _FusedAttention:
    """On the meta device, where torch would write attention out as matmuls, call the fused operation of a CPU.

    The function itself is exchanged: a mode of torch would not be seen where a backward pass recomputes activations.
    """

    depth = 0
    original = functional.scaled_dot_product_attention

    def __enter__(self) -> None:
        _FusedAttention.depth += 1
        functional.scaled_dot_product_attention = _fused

    def __exit__(self, *error: Any) -> None:
        _FusedAttention.depth -= 1
        if _FusedAttention.depth == 0:
            functional.scaled_dot_product_attention = _FusedAttention.original


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **more: Any,
) -> Any:  # fmt: skip
    if query.device.type != "meta":
        return _FusedAttention.original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    return ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


class Flops:
    """Counts the operations of everything run inside; `total` afterwards."""

    def __init__(self) -> None:
        formulas = {ATTENTION: _attention_flops, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
                    _attention_backward_flops}  # fmt: skip
        self.counter = FlopCounterMode(display=False, custom_mapping=formulas)
        self.attention = _FusedAttention()

    def __enter__(self) -> Flops:
        self.counter.__enter__()
        self.attention.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.attention.__exit__(*error)
        self.counter.__exit__(*error)

    @property
    def total(self) -> int:
        return self.counter.get_total_flops()


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make: `peak` is the most bytes alive at once, those made before excluded."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = 0
        self.attention = _FusedAttention()

    def __enter__(self) -> LiveBytes:
        self.attention.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.attention.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self.alive:
                    self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.alive.pop(key, None)
        self.now -= size


def size_of(*modules: torch.nn.Module) -> int:
    """Bytes of the parameters and buffers, shared ones once."""
    tensors = {t.data_ptr() if t.device.type != "meta" else id(t): t
               for m in modules for t in [*m.parameters(), *m.buffers()]}  # fmt: skip
    return sum(t.numel() * t.element_size() for t in tensors.values())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """The fastest of `repeats` calls: the machine may be busy, but it is never faster than it is."""
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matmul: what the device reaches, not what its data sheet says."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * n**3 / seconds(lambda: a @ b, device, repeats=5)


def bandwidth(device: torch.device) -> float:
    """Bytes/s of a copy of 256 MiB (1 GiB on a GPU): read and written."""
    count = (1 << 28) if device.type == "cuda" else (1 << 26)
    a = torch.ones(count, device=device)
    b = torch.empty_like(a)
    b.copy_(a)
    return 2 * 4 * count / seconds(lambda: b.copy_(a), device, repeats=5)
