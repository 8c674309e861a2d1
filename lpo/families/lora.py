"""Low-rank adapters (LoRA, arXiv 2106.09685) in a denoiser: W + B A, alpha = rank, A gaussian, B zero at first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from lpo.errors import LpoError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the LPO paper, section 4.1
NAME = "default"  # under which peft keeps an adapter
FILE = "pytorch_lora_weights.safetensors"


def add(denoiser: Any, rank: int, seed: int, targets: list[str]) -> list[nn.Parameter]:
    """Put a fresh adapter in; its parameters, which alone train and are float32 in a half-precision model too."""
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
        denoiser.add_adapter(config)
    weights = [p for p in denoiser.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    return weights


@contextmanager
def switched_off(denoiser: Any) -> Iterator[None]:
    """Inside, the adapter is off: the reference policy."""
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def find(folder: Path) -> tuple[str, str]:
    """(folder, file name) of a LoRA: a folder that `save_lora_weights` wrote, or a .safetensors file.

    Raises:
        LpoError: if it isn't there.
    """
    file = folder if folder.suffix == ".safetensors" else folder / FILE
    if not file.exists():
        raise LpoError("no LoRA here", str(folder), f"name a folder with {FILE} in it")
    return str(file.parent), file.name
