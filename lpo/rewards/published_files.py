"""Files of models that others published: found in a folder or on the hub, loaded without running code from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lpo.errors import LpoError
from lpo.files import inside

M = TypeVar("M", bound=nn.Module)
REMEDY = "name a folder that holds it or a hub id, and check the connection to the hub"


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


def weights_of(path: Path) -> dict[str, Any]:
    """What a .safetensors file, or a .pt file with nothing but tensors and plain values, holds.

    Raises:
        LpoError: if the file is broken, or is a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "download the file again, from its authors"
        raise LpoError(f"no weights can be read: {first}", str(path), remedy) from error


def from_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained` of transformers, with a message for people.

    Raises:
        LpoError: if the folder or repository has no such part.
    """
    try:
        return cls.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LpoError(f"can't load its {cls.__name__}: {first}", source, REMEDY) from error


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
