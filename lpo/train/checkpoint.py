"""Checkpoints: one safetensors file a step, in a folder keyed by everything that determines the run.

DVC deletes a stage's outputs before it runs, so checkpoints live outside them, in `.checkpoints/STAGE/KEY/`. KEY is a
hash of the stage's parameters, its inputs' contents and this package's code: a run resumes only what is its own.
Randomness is never stored: every step draws from `generator(seed, stream, step)`, so a resumed run equals one never
interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lpo.files import file_hash, key_of, replacing

ROOT = Path(".checkpoints")
KEPT_RUNS = 3  # of each stage; older ones are collected


def generator(seed: int, stream: str, step: int = 0) -> torch.Generator:
    """A generator that depends on (seed, stream, step) alone, whatever was drawn before."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def code_hash() -> str:
    """SHA-256 of every Python file of the package: another code may mean another training."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file_hash(file).encode())
    return digest.hexdigest()


def folder(stage: str, identity: Mapping[str, Any]) -> Path:
    """The checkpoint folder of a run, made if need be; of the stage's other runs only the newest stay."""
    path = ROOT / stage / key_of({"code": code_hash(), **identity})
    path.mkdir(parents=True, exist_ok=True)
    os.utime(path)
    others = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in others[KEPT_RUNS:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def save(path: Path, step: int, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write step's checkpoint atomically and remove the earlier ones."""
    target = path / f"step-{step:08d}.safetensors"
    with replacing(target) as partial:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, {"meta": json.dumps(meta)})
    for old in path.glob("step-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


def load(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
    """(step, tensors, meta) of the newest checkpoint, None where there is none."""
    files = sorted(path.glob("step-*.safetensors"))
    if not files:
        return None
    with safe_open(files[-1], "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        meta = json.loads((file.metadata() or {})["meta"])
    return int(files[-1].stem.split("-")[1]), tensors, meta


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def unprefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = prefix + "/"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


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


@torch.no_grad()
def update_ema(ema: dict[str, torch.Tensor], named: Mapping[str, torch.Tensor], decay: float) -> None:
    """ema <- decay ema + (1 - decay) value, in place."""
    torch._foreach_lerp_([ema[name] for name in named], [value.detach() for value in named.values()], 1 - decay)
