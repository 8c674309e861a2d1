"""What is measured: floating point operations, seconds, and what the device can do at best.

    with Flops() as flops: ...          flops.total, exact: every multiplication and addition of matmuls, convolutions
    seconds(function, device)           wall time of one call

Live bytes are counted by `lpo.doctor.memory.Alive`. FLOPs and bytes need no device: on the meta device they are those
of the full size. Inside `Flops` attention is one fused operation, as it runs on a GPU and on a CPU: it keeps its inputs
and its output, not the matrix of weights.

Bytes of a backward pass are not to be counted inside `Flops`: torch's counter hooks onto the graph, and what
checkpointing computes again then stays alive until the end (40 GiB at SDXL size, batch 4, where 4 are needed).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lpo.doctor.memory import Alive, attention_as

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
TORCH_ATTENTION = functional.scaled_dot_product_attention
Shape = tuple[int, ...]


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Q K^T and the weighted sum: 2 B h L S (d + d_v)."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _attention_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *a: Any, **kw: Any) -> int:
    """Q K^T once more, then the gradients of the weights, of V, of Q and of K: 5 products where forward has 2."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (3 * width + 2 * value[3])


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **more: Any,
) -> Any:  # fmt: skip
    """On the meta device, where torch would write attention out as matmuls, the fused operation of a CPU."""
    if query.device.type != "meta":
        return TORCH_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    return ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


class Flops:
    """Counts the operations of everything run inside; `total` afterwards."""

    def __init__(self) -> None:
        formulas = {ATTENTION: _attention_flops, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
                    _attention_backward_flops}  # fmt: skip
        self.counter = FlopCounterMode(display=False, custom_mapping=formulas)
        self.attention = attention_as(_fused)

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


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes of what a call makes that are alive at one time, attention fused."""
    with attention_as(_fused), Alive() as memory:
        function()
    return memory.peak


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
