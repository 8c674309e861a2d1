"""Reading LoRA files as diffusers, PEFT and kohya's trainer write them, and files that mix their names.

    W + (alpha / rank) B A     A (rank, in), B (out, rank); convolutions have their kernel in A

A layer of a file is found by its name with every separator made an underscore, so that one lookup serves all writers.
alpha is a tensor of the file, or stands in its metadata (diffusers' `lora_adapter_metadata`, kohya's
`ss_network_alpha`) or in PEFT's adapter_config.json; without any, alpha is the rank. Everything in a file is used, or
the error names what is not. Only names and shapes of the model are looked at: it may live on the meta device.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn

from lpo.errors import LpoError

if TYPE_CHECKING:
    from lpo.families.family import Family

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
TRAINED_HERE = "history.json"  # stands beside an adapter of the stage tune
HALF = re.compile(r"(.+?)(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(A|B|down|up)(?:\.[^.]+)?\.weight")
ALPHA = re.compile(r"(.+?)(?:_lora|\.lora|\.lora_linear_layer)?\.alpha")
DENOISER = "denoiser"
PREFIXES = {
    "unet.": DENOISER, "transformer.": DENOISER, "lora_unet_": DENOISER, "lora_transformer_": DENOISER,
    "diffusion_model.": DENOISER, "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3",
}  # fmt: skip
RESNET = {  # of the original code of Stable Diffusion -> diffusers
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_0": "norm2",
    "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
READ = "LoRA and LoCon of diffusers, PEFT and kohya are read; DoRA, LoHa, LoKr and biases are not"


class Update(NamedTuple):
    """What a file adds to one layer: down is A, up is B times alpha / rank, so that the scale is 1."""

    down: torch.Tensor
    up: torch.Tensor


def find(source: Path) -> Path:
    """The file of a LoRA: a .safetensors file, or the one of a folder of diffusers or PEFT, or its only one.

    Raises:
        LpoError: if there is none, or several.
    """
    if source.suffix == ".safetensors":
        if source.is_file():
            return source
        raise LpoError("no LoRA here", str(source), "name a .safetensors file, or a folder with one in it")
    named = [source / name for name in (FILE, PEFT_FILE) if (source / name).is_file()]
    files = named[:1] or sorted(source.glob("*.safetensors"))
    if len(files) != 1:
        what = f"{len(files)} .safetensors files, and none is called {FILE}" if files else "no LoRA here"
        raise LpoError(what, str(source), f"name a .safetensors file, or a folder with {FILE} in it")
    return files[0]


def read(source: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], Path]:
    """Tensors, metadata and the file itself. Raises LpoError where it is damaged, or a pickle under that name."""
    file = find(source)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            tensors = {name: value.float() if value.itemsize == 1 else value for name, value in tensors.items()}  # fp8
            metadata = dict(opened.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise LpoError(f"no LoRA can be read: {error}", str(file), "copy or train it again") from error
    config = file.parent / PEFT_CONFIG
    if file.name == PEFT_FILE and config.is_file():
        metadata[PEFT_CONFIG] = config.read_text()
    return tensors, metadata, file


def updates(source: Path, family: Family) -> dict[str, dict[str, Update]]:
    """By part of the model ("unet", "text_encoder", ...) and layer: what the file adds to it.

    Raises:
        LpoError: with all that is wrong: keys that belong to no layer, halves without the other, other widths, numbers
            that are not finite, a LoRA that changes nothing.
    """
    tensors, metadata, file = read(source)
    halves, alphas, strange = _split(tensors)
    denoiser = next(iter(family.modules()))
    index = {part: dict(_layers(module)) for part, module in family.modules().items()}
    per_level = getattr(getattr(family.denoiser, "config", None), "layers_per_block", None)
    settings = _settings(metadata, denoiser, file)
    found: dict[str, dict[str, Update]] = {}
    wide: list[str] = []
    for layer, pair in halves.items():
        place = _place(layer, index, denoiser, per_level if isinstance(per_level, int) else None)
        if place is None or set(pair) != {"down", "up"} or place[1] in found.get(place[0], {}):
            strange += [key for key in tensors if _layer_of(key) == layer]
            continue
        part, name, shape = place
        down, up = (_shaped(pair[half], shape) for half in ("down", "up"))
        rank = len(down)
        if (rank, *shape[1:]) != tuple(down.shape) or (shape[0], rank) != tuple(up.shape[:2]):
            said = " and ".join(str(tuple(half.shape)) for half in (down, up))
            wide.append(f"{part}.{name} is {shape}, the file has {said}")
            continue
        scale = _scale(alphas.get(layer), settings, part, name, rank)
        found.setdefault(part, {})[name] = Update(down, up if scale == 1 else up.float() * scale)
    strange += [key for key in tensors if ALPHA.fullmatch(key) and _layer_of(key) not in halves]
    _refuse(strange, wide, found, settings, len(tensors), file)
    return found


def _split(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, float], list[str]]:
    """(halves by layer, alphas by layer, keys that are neither)."""
    halves: dict[str, dict[str, torch.Tensor]] = {}
    alphas, strange = {}, []
    for key, value in tensors.items():
        if half := HALF.fullmatch(key):
            halves.setdefault(half[1], {})["down" if half[2] in ("A", "down") else "up"] = value
        elif (alpha := ALPHA.fullmatch(key)) and value.numel() == 1:
            alphas[alpha[1]] = float(value)
        else:
            strange.append(key)
    return halves, alphas, strange


def _layer_of(key: str) -> str:
    found = HALF.fullmatch(key) or ALPHA.fullmatch(key)
    return found[1] if found else key


def _layers(module: nn.Module) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """(name with underscores, (name, shape of the weight)) of what can carry a LoRA."""
    for name, layer in module.named_modules():
        base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
        if isinstance(base, nn.Linear | nn.Conv2d) and not re.search(r"\.(base_layer|lora_[AB])\b", name):
            yield _plain(name), (name, tuple(base.weight.shape))


def _plain(name: str) -> str:
    """A name without what differs between writers: separators, and a prefix that some give a text encoder."""
    return re.sub(r"[._]+", "_", name).removeprefix("text_model_")


def _place(
    layer: str, index: Mapping[str, Mapping[str, Any]], denoiser: str, per_level: int | None
) -> tuple[str, str, tuple[int, ...]] | None:
    """(part, name, shape) of the layer that a file calls `layer`; None where the model has no such."""
    name = layer.removeprefix("base_model.model.")
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    owner = {"": None, DENOISER: denoiser}.get(PREFIXES.get(prefix, ""), PREFIXES.get(prefix))
    name = _plain(name.removeprefix(prefix)).replace("_processor", "")
    for part in [owner] if owner else list(index):
        for candidate in _candidates(name, per_level):
            if candidate in index.get(part, {}):
                return part, *index[part][candidate]
    return None


def _candidates(name: str, per_level: int | None) -> Iterator[str]:
    """The names that a layer may have in diffusers and transformers."""
    yield name
    yield f"{name}_0"  # to_out
    yield re.sub(r"self_attn_to_([qkv])$", r"self_attn_\1_proj", name).replace("self_attn_to_out", "self_attn_out_proj")
    if per_level is not None:
        yield _from_original(name, per_level + 1)


def _from_original(name: str, per_level: int) -> str:
    """A U-Net's layer by its original name -> by diffusers': input_blocks_4_1_x -> down_blocks_1_attentions_0_x."""
    name = name.replace("middle_block_1_", "mid_block_attentions_0_")
    name = re.sub(r"middle_block_([02])_", lambda m: f"mid_block_resnets_{int(m[1]) // 2}_", name)
    if place := re.fullmatch(r"(input|output)_blocks_(\d+)_(\d+)_(.+)", name):
        side, number, kind, rest = place[1], int(place[2]) - (place[1] == "input"), int(place[3]), place[4]
        level, layer = divmod(number, per_level)
        blocks = f"{'down' if side == 'input' else 'up'}_blocks_{level}"
        if rest in ("op", "conv"):
            return f"{blocks}_{'downsamplers' if rest == 'op' else 'upsamplers'}_0_conv"
        name = f"{blocks}_{'attentions' if kind else 'resnets'}_{layer}_{rest}"
    for original, ours in RESNET.items():
        name = name.replace(f"_{original}", f"_{ours}") if "_resnets_" in name else name
    others = {"time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2",
              "label_emb_0_0": "add_embedding_linear_1", "label_emb_0_2": "add_embedding_linear_2",
              "input_blocks_0_0": "conv_in", "out_2": "conv_out"}  # fmt: skip
    return others.get(name, name)


def _shaped(half: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A half as its layer wants it: some writers give a linear layer a kernel of one pixel, and others leave it out."""
    if len(shape) == 2 and half.ndim == 4 and half.shape[2:] == (1, 1):
        return half[:, :, 0, 0]
    return half[:, :, None, None] if len(shape) == 4 and half.ndim == 2 else half


def _settings(metadata: Mapping[str, str], denoiser: str, file: Path) -> dict[str | None, dict[str, Any]]:
    """What the metadata says of alphas, by part; None: of every part. Raises LpoError where it can't be read."""
    settings: dict[str | None, dict[str, Any]] = {None: {}}
    try:
        for key, value in json.loads(metadata.get("lora_adapter_metadata", "{}")).items():
            prefix, _, name = key.partition(".")
            part = denoiser if prefix in ("unet", "transformer") else prefix
            settings.setdefault(part if name else None, {})[name or key] = value
        settings[None] |= json.loads(metadata.get(PEFT_CONFIG, "{}"))
    except (ValueError, AttributeError, TypeError) as error:
        what = f"the alphas of this LoRA can't be read: {error}"
        raise LpoError(what, str(file), "copy or train it again") from error
    with suppress(KeyError, ValueError):  # kohya writes "None" for alpha = rank
        settings[None].setdefault("lora_alpha", float(metadata["ss_network_alpha"]))
    return settings


def _scale(
    alpha: float | None, settings: Mapping[str | None, Mapping[str, Any]], part: str, name: str, rank: int
) -> float:
    told = {**settings.get(None, {}), **settings.get(part, {})}
    if alpha is None:
        patterns = told.get("alpha_pattern") or {}
        matching = [value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)]
        alpha = float((matching or [told.get("lora_alpha") or rank])[0])
    return alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)


def _refuse(
    strange: list[str], wide: list[str], found: Mapping[str, Mapping[str, Update]],
    settings: Mapping[str | None, Mapping[str, Any]], total: int, file: Path,
) -> None:  # fmt: skip
    """Raises LpoError for everything that `updates` says."""
    wrong = []
    if any(told.get("use_dora") for told in settings.values()):
        wrong.append("it is a DoRA")
    if strange:
        wrong.append(f"{len(strange)} of its {total} keys belong to no layer of this model: {_some(sorted(strange))}")
    if wide:
        wrong.append(f"{len(wide)} layers have another width: {_some(wide)}")
    both = [update for layers in found.values() for update in layers.values()]
    if any(not bool(half.isfinite().all()) for update in both for half in update):
        wrong.append("it holds NaN or infinity")
    silent = not any(bool(update.down.any()) and bool(update.up.any()) for update in both)
    if not wrong and silent and not (file.parent / TRAINED_HERE).exists():
        wrong.append("it changes nothing: " + ("every B or A is zero" if both else "there are no layers in it"))
    if wrong:
        remedy = f"use it with the base model that it was trained on (model.family, model.path); {READ}"
        raise LpoError(f"this LoRA can't be used: {'; '.join(wrong)}", str(file), remedy)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
