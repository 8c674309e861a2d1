"""export: a LoRA -> a whole pipeline with the LoRA merged in, or one LoRA file that other tools read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

from lpo.config import Params
from lpo.families import load_family
from lpo.families import lora as lora_of
from lpo.families.family import Family
from lpo.outputs import output_file, output_folder
from lpo.registry.ledger import folder_of


def run(params: Params, lora: Path, out: Path, force: bool = False) -> None:
    """Write `out`: a .safetensors file is the LoRA alone, anything else a folder with the merged pipeline.

    Args:
        lora: a folder, a file, or a name that `lpo models` lists ("promoted" is the one in use).
        force: replace a file that this command did not write.

    Raises:
        LpoError: if there is no LoRA, no model, or something else is at `out`.
    """
    family = load_family(params.model)
    family.load_lora(folder_of(lora))
    if out.suffix == ".safetensors":
        with output_file(out, "lpo export", force) as partial:
            save_file(single_file(family), partial, metadata={"format": "pt"})
    else:
        with output_folder(out, "lpo export") as folder:
            save_merged(family, params, folder)


def save_merged(family: Family, params: Params, folder: Path) -> None:
    """W + B A as plain weights, in float32 sums; the other parts as they are."""
    for module in family.modules().values():
        if any("lora_A" in key for key, _ in module.named_parameters()):
            module.to(torch.float32)
            lora_of.merge(module)
            module.to(family.dtype)
    own = {**family.modules(), **family.tokenizers(), "vae": family.codec.vae}
    options: dict[str, Any] = {}
    if family.name == "sd":  # a filter that no preset loads
        options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    optional = [suffix for suffix, encoder in family.encoders.items() if encoder.optional]
    lacking = [suffix for suffix in optional if f"text_encoder{suffix}" not in own]  # SD3 without T5
    options |= {f"{part}{suffix}": None for suffix in lacking for part in ("text_encoder", "tokenizer")}
    pipeline = family.pipeline.from_pretrained(params.model.path, **own, **options)
    pipeline.save_pretrained(folder)


def single_file(family: Family) -> dict[str, torch.Tensor]:
    """The adapter under the names of kohya's trainer, which ComfyUI, A1111 and others read.

    A U-Net's: `lora_unet_` and the layer's path with underscores, then .lora_down.weight, .lora_up.weight, .alpha;
    SDXL's layers are counted as in its original code. A transformer's: diffusers' own names, the layout those tools
    read for it; it has no alphas, which means alpha = rank, as ours is.
    """
    state: dict[str, torch.Tensor] = {}  # empty where a LoRA of others changes the text encoders alone
    for layer, update in lora_of.updates_of(family.denoiser).items():
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = update.down, update.up
    state = {key: value.contiguous() for key, value in state.items()}
    if family.part == "transformer":
        return {f"transformer.{k}": v for k, v in state.items()} | text_encoders(family, kohya=False)
    kohya = convert_state_dict_to_kohya({f"unet.{k}": v for k, v in state.items()}) if state else {}
    kohya = {k: v.float() if k.endswith(".alpha") else v for k, v in kohya.items()}
    if family.name == "sdxl":
        per_level = family.denoiser.config.layers_per_block + 1
        kohya = {original_name(k, per_level): v for k, v in kohya.items()}
    return kohya | text_encoders(family, kohya=True)


def text_encoders(family: Family, kohya: bool) -> dict[str, torch.Tensor]:
    """The adapters of the text encoders, which only a LoRA of others has, in diffusers' names or in kohya's."""
    found: dict[str, torch.Tensor] = {}
    for part, module in list(family.modules().items())[1:]:
        number = part.removeprefix("text_encoder").removeprefix("_") or "1"
        for layer, update in lora_of.updates_of(module).items():
            path = layer if layer.startswith("text_model.") or number == "3" else f"text_model.{layer}"
            prefix = f"lora_te{number if family.name != 'sd' else ''}_{path.replace('.', '_')}"
            halves = {"lora_down": update.down, "lora_up": update.up}
            if not kohya:
                prefix, halves = f"{part}.{path}", {"lora_A": update.down, "lora_B": update.up}
            found |= {f"{prefix}.{half}.weight": value.contiguous() for half, value in halves.items()}
            found |= {f"{prefix}.alpha": torch.tensor(float(len(update.down)))} if kohya else {}
    return found


def original_name(key: str, per_level: int) -> str:
    """down_blocks_1_attentions_0 -> input_blocks_4_1 and so on, as SDXL's original code counts its blocks."""

    def numbered(place: re.Match[str]) -> str:
        side, level, layer = place[1], int(place[2]), int(place[3])
        number = level * per_level + layer
        return f"input_blocks_{number + 1}_1" if side == "down" else f"output_blocks_{number}_1"

    key = key.replace("mid_block_attentions_0", "middle_block_1")
    return re.sub(r"(down|up)_blocks_(\d+)_attentions_(\d+)", numbered, key)
