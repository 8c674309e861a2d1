"""Files of models that others published: found in a folder or on the hub, loaded without running code from them.

    weights = read_weights("openai/clip-vit-large-patch14")     a folder or a hub id
    weights = read_weights("sac+logos+ava1-l14-linearMSE.pth")  a file

safetensors is preferred. Formats that were only ever published as a pickle are read with `weights_only=True`, which
builds tensors and plain values and refuses everything else.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from lpo.errors import LpoError
from lpo.files import inside

transformers_logging.disable_progress_bar()  # of reading files, which takes seconds; downloads keep theirs

M = TypeVar("M", bound=nn.Module)
REMEDY = "name a folder that holds it, or a hub id, and allow the hub with HF_HUB_OFFLINE=0"
PLACES = (
    "model.safetensors", "model.safetensors.index.json", "model.fp16.safetensors", "model.safetensors.index.fp16.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
VARIANTS = (None, "fp16", "bf16")  # of the names of weight files, in the order in which they are looked for


def refusal(error: BaseException, what: str, source: str, remedy: str = REMEDY) -> LpoError:
    """What to tell somebody whose model can't be had; `error` is what a library raised, with its causes.

    The hub answers 401, 403 and 404 alike for what is gone, private or gated, so the three are named together.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    site = f"https://huggingface.co/{source}"
    for cause in causes:
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return LpoError(what, source, f"look at the files of {site}, and name another repository or a folder")
        status = getattr(getattr(cause, "response", None), "status_code", None)
        refused = isinstance(cause, HfHubHTTPError) and status in (401, 403, 404)
        if refused or isinstance(cause, RepositoryNotFoundError):
            said = f"{what.split(':')[0]}: the hub says {status or 404}, so the repository is gone, private or gated"
            if isinstance(cause, GatedRepoError):
                said = f"{what.split(':')[0]}: the repository is gated"
            how = f"accept its terms on {site} and run `hf auth login`, or name a mirror or a folder in its place"
            return LpoError(said, source, how)
    return LpoError(what, source, remedy)


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
        raise refusal(error, f"can't find {name}: {_first_line(error)}", source) from error


def find(source: str, name: str) -> Path | None:
    """As `file_of`, for a file that need not be there: None where it is in neither.

    Raises:
        LpoError: if the source is no folder, and the hub can't be asked.
    """
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise refusal(error, f"the model is not here: {_first_line(error)}", source) from error
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
        mapped = zipfile.is_zipfile(path)  # its pages are read when they are needed; older files cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def from_pretrained(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained` of transformers or diffusers, with a message for people.

    Weights are looked for under their plain name, then as a half-precision variant.

    Raises:
        LpoError: if the folder or repository has no such part.
    """
    try:
        return any_variant(cls, source, **options)
    except (OSError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise refusal(error, f"can't load its {cls.__name__}: {_first_line(error)}", source) from error


def any_variant(cls: Any, source: str, **options: Any) -> Any:
    """`cls.from_pretrained`, of the first of VARIANTS that is there. Raises what the plain name raised."""
    first: Exception | None = None
    has_weights = isinstance(cls, type) and issubclass(cls, nn.Module)
    for variant in VARIANTS if has_weights else VARIANTS[:1]:
        try:
            return cls.from_pretrained(source, **options, **({"variant": variant} if variant else {}))
        except (OSError, ValueError) as error:
            first = first or error
            missing = "file named" in str(error) or not Path(source).is_dir()
            if not missing or isinstance(error, SafetensorError):  # a damaged file is no reason to take another
                break
    assert first is not None
    raise first


def tokenizer_of(cls: Any, source: str) -> Any:
    """A tokenizer. transformers makes an empty one of a folder without files, hence the look at them first.

    Raises:
        LpoError: as `file_of` and `from_pretrained` do.
    """
    file_of(source, "tokenizer_config.json")
    return from_pretrained(cls, source)


def fill(module: M, weights: Mapping[str, torch.Tensor], where: str) -> M:
    """The module with these weights in float32, frozen. Its own are dropped first: memory holds one of them at a time.

    Raises:
        LpoError: if a name is missing or left over, or a shape differs.
    """
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(weight.to("meta")))
    try:
        module.load_state_dict({name: value.float().contiguous() for name, value in weights.items()}, assign=True)
    except RuntimeError as error:
        raise LpoError(f"the weights don't fit: {error}", where, "take the published file") from error
    return module.requires_grad_(False).eval()
