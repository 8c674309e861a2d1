"""Model families: the only rooms that import diffusers pipelines."""

from __future__ import annotations

import torch

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import sd

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(model: Model) -> torch.device:
    """`auto` is cuda where there is one. Raises LpoError for a cuda that isn't there."""
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model.device == "cuda" and not torch.cuda.is_available():
        raise LpoError("no CUDA device here", "params.yaml: model.device", "set it to auto or cpu")
    return torch.device(model.device)


def load_family(model: Model, reward: bool = False) -> sd.SD:
    """The family object of `model`; with `reward` only what a reward's backbone needs.

    One family today: a second one is a file beside sd.py and a choice of `model.family` in config.py.
    """
    return sd.load(model.path, device_of(model), DTYPES[model.dtype], reward)
