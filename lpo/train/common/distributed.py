"""Several processes, one training: `torchrun --nproc_per_node 2 .venv/bin/lpo tune`.

Every process takes its share of the rows, draws the noise of that share, and holds the same weights: gradients are
summed over all of them before each step. So N processes make what one makes, up to the order of a sum, no row is
dropped whatever the shares, and a checkpoint may be resumed by another number of processes. The first process alone
writes. With `model.shard` frozen weights are gathered while they are used (lpo/families/sharding.py), so every process
runs a model as often as the others do. Without torchrun there is one process, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes that torchrun started work together; alone otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def share(rows: torch.Tensor) -> torch.Tensor:
    """This process's part of some rows: the parts differ by one row at most, and may be empty."""
    return rows.tensor_split(count())[rank()]


def largest_share(count_of_rows: int) -> int:
    """The length of the longest `share` of some rows."""
    return -(-count_of_rows // count())


def batches(count_of_rows: int, size: int) -> list[tuple[torch.Tensor, bool]]:
    """This process's rows of `count_of_rows` in parts of `size` at most, as many parts in every process.

    With each, whether it counts: where a share has fewer parts than another one, row 0 is run and counts for nothing.
    """
    mine = share(torch.arange(count_of_rows))
    parts = [(part, True) for part in mine.split(size) if len(part)]
    missing = -(-largest_share(count_of_rows) // size) - len(parts)
    return parts + [(torch.zeros(1, dtype=torch.long), False)] * missing


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order. Tensors should be on the CPU."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """The first process's value."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sum_gradients(weights: Sequence[torch.Tensor]) -> None:
    """Replace every gradient by its sum over the processes; none counts as zero."""
    if count() == 1:
        return
    for weight in weights:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    flat = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for weight in weights:
        assert weight.grad is not None
        weight.grad.copy_(flat[start : start + weight.numel()].view_as(weight))
        start += weight.numel()
