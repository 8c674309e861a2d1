"""Low-rank adapters (LoRA, arXiv 2106.09685) in a denoiser: W + B A, alpha = rank, A gaussian, B zero at first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lpo.config import Model
from lpo.families import lora_files

if TYPE_CHECKING:
    from lpo.families.family import Family

POLICY, REWARD = "default", "reward"  # names of adapters that one denoiser holds at a time
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # of the LPO paper, section 4.1
HALF_UNET = r"(down_blocks|mid_block)\..*\.(to_q|to_k|to_v|to_out\.0)"  # what a reward runs of a U-Net
FILE = lora_files.FILE


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
    _FOUND.pop(denoiser, None)
    weights = {k: p for k, p in denoiser.named_parameters() if p.requires_grad}
    for weight in weights.values():
        weight.data = weight.data.float()
    return weights


# Layers with adapters, and the names of the adapters that a module had when they were looked up.
_FOUND: WeakKeyDictionary[nn.Module, tuple[tuple[str, ...], list[BaseTunerLayer]]] = WeakKeyDictionary()


def adapted(module: Any) -> list[BaseTunerLayer]:
    """The layers of a module that hold adapters, looked up once for each set of adapters.

    Walking SDXL's tree takes tens of milliseconds, and policy, reference and reward take turns at every step.
    """
    names = tuple(getattr(module, "peft_config", {}))
    if module not in _FOUND or _FOUND[module][0] != names:
        _FOUND[module] = names, list(_layers(module).values())
    return _FOUND[module][1]


def _switch(layer: BaseTunerLayer, active: str | list[str], disabled: bool) -> None:
    """Not by nn.Module's own assignment, which first asks whether a weight or a module is meant."""
    object.__setattr__(layer, "_active_adapter", active)
    object.__setattr__(layer, "_disable_adapters", disabled)


@contextmanager
def _as_before(layers: list[BaseTunerLayer]) -> Iterator[None]:
    """Afterwards the layers have the active adapters that they have now.

    Inside, peft's two attributes are set directly: its methods also walk over the weights to say which of them train,
    and that never changes here.
    """
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            _switch(layer, active, disabled)


@contextmanager
def switched_to(denoiser: Any, name: str) -> Iterator[None]:
    """Inside, the adapter `name` is the only active one; afterwards those that were. What trains stays what it is."""
    layers = adapted(denoiser)
    with _as_before(layers):
        for layer in layers:
            _switch(layer, [name], False)
        yield


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
def switched_off(*modules: Any) -> Iterator[None]:
    """Inside, all adapters are off: the reference policy. Those that were off before stay off afterwards."""
    layers = [layer for module in modules for layer in adapted(module)]
    with _as_before(layers):
        for layer in layers:
            _switch(layer, layer._active_adapter, True)
        yield


def check(source: Path, model: Family | Model) -> None:
    """Whether `load` could use this LoRA: every key has a layer, and every width fits. Nothing is drawn.

    Only the model's configurations are read: a `Model` of params.yaml is built on the meta device.

    Raises:
        LpoError: with everything that does not fit (`lora_files.updates`).
    """
    if isinstance(model, Model):
        from lpo.families import load_family  # it imports this module

        model = load_family(model, device=torch.device("meta"))
    lora_files.updates(source, model)


def load(source: Path, family: Family) -> None:
    """Load a LoRA of a folder or a file into the denoiser and the text encoders, and switch it on, frozen.

    Raises:
        LpoError: unless everything in the file is used (`lora_files.updates`).
    """
    for part, layers in lora_files.updates(source, family).items():
        _put(family.modules()[part], layers)


def put_beside(module: Any, layers: Mapping[str, lora_files.Update], name: str) -> None:
    """Put what a file holds in as a frozen adapter beside those that are there, which stay active."""
    before = {k: list(layer.active_adapters) for k, layer in _layers(module).items()}
    _put(module, layers, name)
    for k, layer in _layers(module).items():
        layer.set_adapter(before.get(k, []))


def _put(module: Any, layers: Mapping[str, lora_files.Update], adapter: str = POLICY) -> None:
    ranks = {name: len(update.down) for name, update in layers.items()}
    names = "|".join(re.escape(name) for name in layers)
    config = LoraConfig(
        r=max(ranks.values()), rank_pattern={f"^{re.escape(k)}$": r for k, r in ranks.items()},
        lora_alpha=max(ranks.values()), alpha_pattern={f"^{re.escape(k)}$": r for k, r in ranks.items()},
        target_modules=f"({names})", init_lora_weights=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        module.add_adapter(config, adapter_name=adapter)
    _FOUND.pop(module, None)
    for name, layer in _layers(module).items():
        if adapter in layer.lora_A:
            layer.lora_A[adapter].weight.data.copy_(layers[name].down)
            layer.lora_B[adapter].weight.data.copy_(layers[name].up)
    activate(module, adapter)


def updates_of(module: Any) -> dict[str, lora_files.Update]:
    """What the loaded LoRA adds to each layer of a module, on the CPU; empty without one."""
    layers = {name: layer for name, layer in _layers(module).items() if POLICY in layer.lora_A}
    return {
        name: lora_files.Update(*(half[POLICY].weight.detach().cpu() for half in (layer.lora_A, layer.lora_B)))
        for name, layer in layers.items()
    }


def merge(module: Any) -> None:
    """W <- W + B A in place, and the adapters are gone."""
    for name, layer in _layers(module).items():
        layer.merge()
        module.set_submodule(name, layer.get_base_layer())
    _FOUND.pop(module, None)
    module._hf_peft_config_loaded = False  # else transformers saves the adapter that is no longer there
    module.__dict__.pop("peft_config", None)
