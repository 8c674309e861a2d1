"""The state of a training as one safetensors file a step. No random state is stored (lpo/random.py), so a resumed run
equals one that was never interrupted. Of several processes the first writes and reads it, and sends it to the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lpo.errors import NotFinite
from lpo.files import replacing
from lpo.train.common import distributed


@dataclass(frozen=True)
class Training:
    """A stored training: steps done, `meta` as it was saved, and tensors named `STATE/NAME`."""

    step: int
    tensors: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any]

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The state that was saved under this name."""
        start = name + "/"
        return {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}


def save_training(
    path: Path, step: int, optimizer: torch.optim.Optimizer, states: Mapping[str, Mapping[str, torch.Tensor]],
    meta: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the checkpoint of a step atomically, then remove the earlier ones; all processes call it, the first writes.

    states: named state dicts, such as {"model": ..., "ema": ...}. meta: anything that JSON holds.

    Raises:
        NotFinite: if a tensor is NaN or infinite; the earlier checkpoint stays.
    """
    states = {"optimizer": optimizer_tensors(optimizer), **states}
    tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        what = f"the training diverged: {len(broken)} of its {len(tensors)} tensors are NaN or infinite: {broken[0]}"
        remedy = f"lower the learning rate, or compute in bf16 or fp32; the last good checkpoint is kept in {path}"
        raise NotFinite(what, f"step {step}", remedy)  # in all processes, since they have the same weights
    if not distributed.is_first():
        return
    target = path / f"step-{step:08d}.safetensors"
    with replacing(target) as partial:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, {"meta": json.dumps(meta or {})})
    for old in path.glob("step-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


def load_training(path: Path, optimizer: torch.optim.Optimizer) -> Training | None:
    """The newest checkpoint, its optimiser state already loaded into `optimizer`; None where there is no checkpoint.

    All processes call it and get the one that the first has, on whatever machine.
    """
    held = _newest(path) if distributed.is_first() else None
    place = distributed.from_first(None if held is None else (held.step, held.meta))
    if place is None:
        return None
    found = Training(place[0], distributed.tensors_from_first(None if held is None else held.tensors), place[1])
    load_optimizer(optimizer, found.state("optimizer"))
    return found


def _newest(path: Path) -> Training | None:
    files = sorted(path.glob("step-*.safetensors"))
    if not files:
        return None
    with safe_open(files[-1], "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        meta = json.loads((file.metadata() or {})["meta"])
    return Training(int(files[-1].stem.split("-")[1]), tensors, meta)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors, `INDEX/NAME`; the learning rate is the trainer's to set."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": value for index, slots in state.items() for name, value in slots.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, slots in optimizer.state.items():  # a file has no strides, and a fused step wants those of the weight
        for name, value in slots.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                slots[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
