"""Files of models that others published: found in a folder or on the hub, loaded without running code from them.

    weights = read_weights("openai/clip-vit-large-patch14")     a folder or a hub id
    weights = read_weights("sac+logos+ava1-l14-linearMSE.pth")  a file

safetensors is preferred. Formats that were only ever published as a pickle are read with `weights_only=True`, which
builds tensors and plain values and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import cached_file

from lpo.errors import LpoError
from lpo.files import inside

M = TypeVar("M", bound=nn.Module)
REMEDY = "name a folder that holds it, or a hub id, and allow the hub with HF_HUB_OFFLINE=0"
PLACES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def file_of(source: str, name: str, repo_type: str = "model") -> Path:
    """The file `name` of a folder, or of a hub repository, which is downloaded unless the hub's cache has it.

    Raises:
        LpoError: if it is in neither.
    """
    if Path(source).is_dir():
        path = inside(source, name)
        if not path.is_file():
            raise LpoError(f"there is no {name}", source, REMEDY)
        return path
    try:
        return Path(hf_hub_download(source, name, repo_type=repo_type))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise LpoError(f"can't find {name}: {error}", source, REMEDY) from error


def find(source: str, name: str) -> Path | None:
    """As `file_of`, for a file that need not be there: None where it is in neither.

    Raises:
        LpoError: if the source is no folder, and the hub can't be asked.
    """
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise LpoError(f"the model is not here: {error}", source, REMEDY) from error
    return Path(found) if found else None


def weights_of(path: Path, prefix: str = "") -> Any:
    """What a file with nothing but tensors and plain values holds; of a .safetensors what begins with `prefix`.

    Raises:
        LpoError: if the file is broken, or is a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        what = f"no weights can be read, and no code of it was run: {_first_line(error)}"
        remedy = "download the file again, from its authors; a pickle may hold tensors only"
        raise LpoError(what, str(path), remedy) from error


def read_weights(source: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a file, or of a model's folder or hub id, whose names begin with `prefix`; no others are read.

    Raises:
        LpoError: if there are none, a file is damaged, or a pickle holds more than tensors.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in [Path(source)] if Path(source).is_file() else _weight_files(source, prefix):
        held = weights_of(file, prefix)
        held = held.get("state_dict", held) if isinstance(held, dict) else {}
        weights |= {k: v for k, v in held.items() if isinstance(v, torch.Tensor) and k.startswith(prefix)}
    if not weights:
        raise LpoError(f"there are no weights {prefix}* here", source, "name a model or a file that has them")
    return weights


def _weight_files(source: str, prefix: str) -> Iterator[Path]:
    for name in PLACES:
        found = find(source, name)
        if found is None:
            continue
        if not name.endswith(".json"):
            yield found
            return
        places = json.loads(found.read_text())["weight_map"]
        for part in sorted({file for tensor, file in places.items() if tensor.startswith(prefix)}):
            shard = find(source, part)
            if shard is None:
                raise LpoError(f"{part} is missing", source, "download the model again")
            yield shard
        return


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def from_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained` of transformers, with a message for people.

    Raises:
        LpoError: if the folder or repository has no such part.
    """
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise LpoError(f"can't load its {cls.__name__}: {_first_line(error)}", source, REMEDY) from error


def tokenizer_of(cls: Any, source: str) -> Any:
    """A tokenizer. transformers makes an empty one of a folder without files, hence the look at them first.

    Raises:
        LpoError: as `file_of` and `from_pretrained` do.
    """
    file_of(source, "tokenizer_config.json")
    return from_pretrained(cls, source)


def fill(module: M, weights: Mapping[str, torch.Tensor], where: str) -> M:
    """The module with these weights in float32, frozen.

    Raises:
        LpoError: if a name is missing or left over, or a shape differs.
    """
    try:
        module.load_state_dict({name: value.float() for name, value in weights.items()})
    except RuntimeError as error:
        raise LpoError(f"the weights don't fit: {error}", where, "take the published file") from error
    return module.requires_grad_(False).eval()
