"""Low-rank adapters (LoRA, arXiv 2106.09685) in a denoiser: W + B A, alpha = rank, A gaussian, B zero at first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn

from lpo.errors import LpoError

POLICY, REWARD = "default", "reward"  # names of adapters that one denoiser holds at a time
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the LPO paper, section 4.1
HALF_UNET = r"(down_blocks|mid_block)\..*\.(to_q|to_k|to_v|to_out\.0)"  # what a reward runs of a U-Net
FILE = "pytorch_lora_weights.safetensors"


def add(
    denoiser: Any, rank: int, seed: int, targets: list[str] | str, name: str = POLICY
) -> dict[str, nn.Parameter]:
    """Put a fresh adapter in and make it the active one; its parameters by name.

    They alone train, and are float32 in a half-precision model too.
    """
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=targets)
        denoiser.add_adapter(config, adapter_name=name)
    weights = {k: p for k, p in denoiser.named_parameters() if p.requires_grad}
    for weight in weights.values():
        weight.data = weight.data.float()
    return weights


@contextmanager
def switched_to(denoiser: Any, name: str) -> Iterator[None]:
    """Inside, the adapter `name` is the only active one; afterwards those that were. What trains stays what it is."""
    layers = _layers(denoiser).values()
    before = [(list(layer.active_adapters), layer.disable_adapters) for layer in layers]
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    for layer in layers:
        layer.enable_adapters(True)
        layer.set_adapter([name], inference_mode=True)
    _require_grad(trained)
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer.set_adapter(active, inference_mode=True)
            if disabled:
                layer.enable_adapters(False)
        _require_grad(trained)


def _require_grad(weights: list[nn.Parameter]) -> None:
    for weight in weights:
        weight.requires_grad_(True)


def activate(denoiser: Any, name: str) -> None:
    """Make the adapter `name` the only active one, and frozen. A loader leaves it inactive beside another one."""
    for layer in _layers(denoiser).values():
        layer.set_adapter([name], inference_mode=True)


def attach(denoiser: Any, rank: int, targets: list[str] | str, name: str) -> dict[str, nn.Parameter]:
    """Add an adapter beside those that are there, which stay active; its parameters by name, frozen."""
    before = {k: list(layer.active_adapters) for k, layer in _layers(denoiser).items()}
    weights = add(denoiser, rank, 0, targets, name)
    for k, layer in _layers(denoiser).items():
        layer.set_adapter(before.get(k, []))
    return weights


def _layers(denoiser: Any) -> dict[str, BaseTunerLayer]:
    return {k: layer for k, layer in denoiser.named_modules() if isinstance(layer, BaseTunerLayer)}


@contextmanager
def switched_off(denoiser: Any) -> Iterator[None]:
    """Inside, all adapters are off: the reference policy."""
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def find(folder: Path) -> tuple[str, str]:
    """(folder, file name) of a LoRA: a folder that `save_lora_weights` wrote, or a .safetensors file.

    Raises:
        LpoError: if it isn't there, or is damaged or a pickle under that name.
    """
    file = folder if folder.suffix == ".safetensors" else folder / FILE
    if not file.exists():
        raise LpoError("no LoRA here", str(folder), f"name a folder with {FILE} in it")
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise LpoError(f"no LoRA can be read: {error}", str(file), "copy or train it again") from error
    return str(file.parent), file.name
