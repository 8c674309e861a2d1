"""Several processes, one training: launch.py starts them on one machine, torchrun on several.

Every process takes its share of the rows and holds the same weights: gradients are summed over all of them before each
step. Validation and test rows are shared too, each row once. So N processes make what one makes, up to the order of a
sum, no row is dropped whatever the shares, and a checkpoint may be resumed by another number of processes. The first
process alone reads checkpoints and writes: the others get them from it, and need no disk that they share with it.

In a rollout a process draws the noise of its own prompts alone. For a step of a reward, and for stored pairs, it draws
all numbers and keeps those of its rows, whose latents alone it reads.

What stops a training is decided by all alike: from sums over the processes, or from weights, which are the same
everywhere. One that stopped alone would leave the others waiting for it.

With `model.shard` frozen weights are gathered while they are used (lpo/families/sharding.py), so every process runs a
model as often as the others do. With one process nothing here does anything.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lpo.errors import LpoError

T = TypeVar("T")

LOOPBACK = "127.0.0.1"  # as the address of the first process: all are on this machine, so nothing listens on others


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, the processes that were started together work together; alone otherwise.

    They end together too. After a failure the group is left as it is: to close it would wait for the others.
    """
    if _world() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    place: dict[str, Any] = {}
    if os.environ["MASTER_ADDR"] == LOOPBACK:
        name = "lo" if sys.platform == "linux" else "lo0"
        os.environ |= {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            place = {"store": local_store(), "rank": int(os.environ["RANK"]), "world_size": _world()}
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **place)
    if not is_first():
        logging.getLogger("lpo").setLevel(logging.CRITICAL)  # the first one says the same
    yield
    wait()
    dist.destroy_process_group()


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_store() -> dist.TCPStore:
    """The store at MASTER_PORT through which the processes of one machine meet.

    torch would let it listen on all addresses. This one is reached from this machine alone.
    """
    port = int(os.environ["MASTER_PORT"])
    if os.environ["RANK"] != "0":
        return dist.TCPStore(LOOPBACK, port, _world(), is_master=False)
    listener = socket.create_server((LOOPBACK, port))
    return dist.TCPStore(LOOPBACK, port, _world(), is_master=True, master_listen_fd=listener.detach())


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


def batches(count_of_rows: int, size: int, of: int = 1) -> list[tuple[torch.Tensor, bool]]:
    """This process's rows of `count_of_rows` in parts of `size` at most, as many parts in every process.

    With each, whether it counts: where a share has fewer parts than another one, row 0 is run and counts for nothing.
    of: every so many rows belong to one process.
    """
    mine = share(torch.arange(count_of_rows).view(count_of_rows // of, of)).flatten()
    parts = [(part, True) for part in mine.split(size) if len(part)]
    missing = -(-largest_share(count_of_rows // of) * of // size) - len(parts)
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


def joined_rows(mine: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in their order, on the CPU."""
    return torch.cat(gathered(mine.cpu()))


def tensors_from_first(tensors: Mapping[str, torch.Tensor] | None) -> Mapping[str, torch.Tensor]:
    """The first process's tensors, on the CPU; what the others pass is not looked at."""
    if count() == 1:
        assert tensors is not None
        return tensors
    kinds = {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()} if is_first() and tensors is not None else {}
    found: dict[str, torch.Tensor] = {}
    for name, (shape, dtype) in from_first(kinds).items():
        found[name] = tensors[name].contiguous() if is_first() and tensors else torch.empty(shape, dtype=dtype)
        if found[name].numel():
            dist.broadcast(found[name].flatten().view(torch.uint8), src=0)  # gloo does not send every dtype
    return found


def check_same(what: str, value: str) -> None:
    """Refuse processes that would train different things.

    Raises:
        LpoError: in all of them, unless the value is the same in all.
    """
    if len(set(gathered(value))) > 1:
        remedy = "give all machines the same commit, params.yaml and data: `git pull` and `dvc pull`"
        raise LpoError(f"the processes have different {what}", "torchrun", remedy)


def wait() -> None:
    """Until all processes are here."""
    if count() > 1:
        dist.barrier()


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
