"""Weights of published models, from a local folder or the hub, never by running a pickle.

    weights = read_weights("openai/clip-vit-large-patch14")     a folder or a hub id
    weights = read_weights("sac+logos+ava1-l14-linearMSE.pth")  a file

safetensors is preferred. Formats that were only ever published as a pickle are read with `weights_only=True`, which
builds tensors and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from lpo.errors import LpoError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_weights(source: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a file, or of a model's folder or hub id, whose names begin with `prefix`; no others are read.

    Raises:
        LpoError: if there are none, a file is damaged, or a pickle holds more than tensors.
    """
    files = [Path(source)] if Path(source).is_file() else list(_files(source, prefix))
    weights = {name: value for file in files for name, value in _read(file, prefix).items()}
    if not weights:
        raise LpoError(f"there are no weights {prefix}* here", source, "name a model or a file that has them")
    return weights


def _files(source: str, prefix: str) -> Iterator[Path]:
    for name in FILES:
        found = _find(source, name)
        if found is None:
            continue
        if not name.endswith(".json"):
            yield found
            return
        places = json.loads(found.read_text())["weight_map"]
        for part in sorted({file for tensor, file in places.items() if tensor.startswith(prefix)}):
            shard = _find(source, part)
            if shard is None:
                raise LpoError(f"{part} is missing", source, "download the model again")
            yield shard
        return


def _find(source: str, name: str) -> Path | None:
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        remedy = "name a folder, or allow the hub with HF_HUB_OFFLINE=0"
        raise LpoError(f"the model is not here: {error}", source, remedy) from error
    return Path(found) if found else None


def _read(file: Path, prefix: str) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118
        read = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        what = f"these are no plain weights: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
        raise LpoError(what, str(file), "use safetensors; a pickle may hold tensors only") from error
    read = read.get("state_dict", read) if isinstance(read, dict) else {}
    return {name: value for name, value in read.items() if isinstance(value, torch.Tensor) and name.startswith(prefix)}
