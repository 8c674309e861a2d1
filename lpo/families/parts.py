"""Reading the parts of a model: from a diffusers folder, from the hub, or as empty shapes on the meta device.

    unet = module(UNet2DConditionModel, "runwayml/some-model", "unet", torch.float32, device)

A source is a folder, or a hub id with or without a folder in it: "owner/name", "owner/name/folder/of/it". Weights are
read from safetensors only: a pickle can run code when it is loaded. On the meta device only config.json is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn

from lpo import hub
from lpo.errors import LpoError

diffusers_logging.disable_progress_bar()  # of reading files, which takes seconds; downloads keep theirs

M = TypeVar("M", bound=nn.Module)
CONFIGURATIONS = Path(__file__).resolve().parents[1] / "presets/models"
REMEDY = "check model.path; a hub id needs a connection once, or the model in the hub's cache; data/base is `lpo base`"


def split_source(source: str) -> tuple[str, str]:
    """("folder or owner/name", "folder inside of it or empty")."""
    if Path(source).exists() or source.startswith((".", "/")):
        return source, ""
    owner_and_name, inside = source.split("/")[:2], source.split("/")[2:]
    return "/".join(owner_and_name), "/".join(inside)


def local(source: str | None) -> str | None:
    """A folder of lpo/presets/models in the place of a hub id that it knows: configurations without weights."""
    known = CONFIGURATIONS / str(source).replace("/", "--")
    return str(known) if source and not Path(source).exists() and known.is_dir() else source


def place(source: str, part: str) -> tuple[str, dict[str, str]]:
    """The two arguments of `from_pretrained` for a part of a source; `part` is "" if the source is the part."""
    root, inside = split_source(source)
    folder = "/".join(name for name in (inside, part) if name)
    return root, {"subfolder": folder} if folder else {}


def has(source: str, part: str) -> bool:
    """Whether a source has a part that its pipeline can do without."""
    root, inside = split_source(source)
    if Path(root).is_dir():
        return (Path(root) / inside / part / "config.json").exists()
    return pipeline_config(source).get(part, [None])[0] is not None


def whole(model: nn.Module) -> nn.Module:
    """Take nothing away."""
    return model


def either(override: str | None, path: str, part: str) -> tuple[str, str]:
    """The source that takes the place of a part of `path`, or the part."""
    return (path, part) if override is None else (override, "")


def module(
    cls: type[M], source: str, part: str, dtype: torch.dtype, device: torch.device,
    shorten: Callable[[Any], Any] = whole,
) -> M:  # fmt: skip
    """A module of diffusers or transformers, frozen, in evaluation mode, on `device`.

    Args:
        shorten: takes away in place what is never run; the file may lack the weights of that, and only of that.

    Raises:
        LpoError: if it isn't there, if it is damaged or a pickle, or if weights are missing.
    """
    root, where = place(source, part)
    label, level = f"{source}/{part}".rstrip("/"), diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # what is missing or wrong is an error below
    try:
        if device.type == "meta":
            model, missing = _empty(cls, root, where).to(dtype), []
        else:
            name = "torch_dtype" if hasattr(cls, "load_config") else "dtype"  # diffusers or transformers
            options = {name: dtype, "use_safetensors": True, "output_loading_info": True, **where}
            model, info = hub.any_variant(cls, root, **options)
            missing = info["missing_keys"]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise hub.refusal(error, f"can't load {part or 'the model'}: {error}", source, REMEDY) from error
    finally:
        diffusers_logging.set_verbosity(level)
    shorten(model)
    absent = sorted(set(missing) & set(model.state_dict()))
    if absent:
        raise LpoError(f"{len(absent)} weights are missing, such as {absent[0]}", label, "take a whole model")
    if device.type == "cuda" and all(weight.dim() < 5 for weight in model.parameters()):  # films have another format
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of convolutions, in place
    return model.to(device).requires_grad_(False).eval()


def _empty(cls: type[M], root: str, where: dict[str, str]) -> M:
    if hasattr(cls, "load_config"):
        config = cls.load_config(root, **where)  # type: ignore[attr-defined]
        with torch.device("meta"):
            return cls.from_config(config)  # type: ignore[attr-defined]
    config = cls.config_class.from_pretrained(root, **where)  # type: ignore[attr-defined]
    with torch.device("meta"):
        return cls(config)


def scheduler(cls: Any, source: str) -> Any:
    """The scheduler of a source. Raises LpoError if it isn't there."""
    return _without_weights(cls, source, "scheduler")


def scheduler_config(cls: Any, source: str) -> dict[str, Any]:
    """What scheduler/scheduler_config.json says, whichever class wrote it. Raises LpoError if it isn't there."""
    root, where = place(source, "scheduler")
    try:
        return dict(cls.load_config(root, **where))
    except (OSError, ValueError) as error:
        raise hub.refusal(error, f"can't load scheduler: {error}", source, REMEDY) from error


def tokenizer(cls: Any, source: str, part: str, device: torch.device) -> Any:
    """A tokenizer of a source; None on the meta device, where nobody reads. Raises LpoError if it isn't there."""
    if device.type == "meta":
        return None
    found = _without_weights(cls, source, part)
    if len(found) <= len(found.all_special_ids):  # what transformers makes, in silence, of an absent folder
        raise LpoError("the tokenizer has no words", f"{source}/{part}", REMEDY)
    return without_origin(found)


def without_origin(tokenizer: Any) -> Any:
    """The tokenizer; how it was found, from a folder or the hub and connected or not, is no longer saved with it."""
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _without_weights(cls: Any, source: str, part: str) -> Any:
    root, where = place(source, part)
    try:
        return cls.from_pretrained(root, **where)
    except (OSError, ValueError) as error:
        raise hub.refusal(error, f"can't load {part}: {error}", source, REMEDY) from error


def pipeline_config(source: str) -> dict[str, Any]:
    """What model_index.json says; empty where there is none (the folder of a reward)."""
    root, inside = split_source(source)
    if Path(root).is_dir() and not (Path(root) / "model_index.json").exists():
        return {}
    try:
        return dict(DiffusionPipeline.load_config(f"{root}/{inside}" if Path(root).is_dir() and inside else root))
    except (OSError, ValueError) as error:
        raise hub.refusal(error, f"can't load model_index.json: {error}", source, REMEDY) from error
