"""The models that an evaluation compares. Each side draws the same prompts from the same seeds.

    base_matched   the base at the guidance scale of the tuned model
    base           the base at its own guidance scale
    tuned          what `evaluate.tuned` names: the base with a LoRA, or with a denoiser that others tuned
    promoted       the base with the promoted LoRA, if there is one and it is not the tuned one

A side's pictures are kept by what decides them. So the tuned model of yesterday is the promoted one of today without
being drawn again, and two sides that are the same model at the same scale are drawn once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lpo import paths
from lpo.config import Evaluate, Model
from lpo.errors import LpoError
from lpo.evaluate.judges import content
from lpo.families import load_family, lora, lora_files
from lpo.families.family import Family
from lpo.families.parts import split_source
from lpo.files import file_hash, key_of
from lpo.hub import file_of
from lpo.sampling.generate import generate

SAMPLER = (
    "num_inference_steps",
    "eta",
    "batch_size",
    "adapter_timesteps",
)  # with the prompts and seeds, what decides a picture


@dataclass(frozen=True)
class Side:
    """lora: a folder or file. denoiser: a folder or hub id that takes the place of the base's own."""

    name: str
    guidance_scale: float
    lora: Path | None = None
    denoiser: str | None = None

    @property
    def weights(self) -> str | None:
        """What stands for the weights that are not the base's; None for the base itself."""
        if self.lora is not None:
            file = lora_files.find(self.lora)
            alphas = file.parent / lora_files.PEFT_CONFIG
            peft = file.name == lora_files.PEFT_FILE and alphas.exists()
            return file_hash(file) + (file_hash(alphas) if peft else "")
        return content(self.denoiser) if self.denoiser else None

    @cached_property
    def key(self) -> str:
        """The name of this side's folder in the cache."""
        return key_of([self.guidance_scale, self.weights])


def sides_of(config: Evaluate, model: Model, promoted: Path | None) -> list[Side]:
    """The sides of an evaluation, with their LoRAs checked against the model. Nothing is drawn.

    Args:
        promoted: the folder of the promoted LoRA, None without one.

    Raises:
        LpoError: if `config.tuned` names neither a LoRA nor a denoiser, or a LoRA does not fit the model.
    """
    scale = config.guidance_scale
    tuned = tuned_side(config.tuned, scale, model)
    sides = [Side("base_matched", scale), Side("base", config.base_guidance_scale), tuned]
    if promoted is not None and (other := Side("promoted", scale, lora=promoted)).key != tuned.key:
        check_promoted(promoted, model)
        sides.append(other)
    return sides


def check_promoted(folder: Path, model: Model) -> None:
    """The promoted LoRA must still fit the model: after a change of preset it does not.

    Raises:
        LpoError: with what does not fit.
    """
    try:
        lora.check(folder, model)
    except LpoError as error:
        what = f"the promoted model cannot be compared: {error.what}"
        raise LpoError(what, error.where, "lpo models rollback base, if the base model was changed") from error


def tuned_side(source: str, guidance_scale: float, model: Model) -> Side:
    """The side that `evaluate.tuned` names: a LoRA (a folder or a file, ours or of the hub) or a denoiser.

    Raises:
        LpoError: if it is neither, or a LoRA that does not fit the model.
    """
    path = Path(source)
    if source.endswith(".safetensors"):
        path = path if path.exists() else file_of(*split_source(source))
    elif path != paths.TUNED and (not path.is_dir() or is_denoiser(path)):
        root, inside = split_source(source)
        file_of(root, f"{inside}/config.json".lstrip("/"))
        return Side("tuned", guidance_scale, denoiser=source)
    lora.check(path, model)
    return Side("tuned", guidance_scale, lora=path)


def is_denoiser(folder: Path) -> bool:
    """A folder of diffusers has a config.json; a LoRA has none, unless its training left one beside it."""
    return (folder / "config.json").is_file() and not (folder / lora_files.FILE).is_file()


def identity(config: Evaluate, model: Model, device: str, rows: pd.DataFrame) -> dict[str, Any]:
    """What all sides share, JSON-able: the base, the sampler, the prompts and their seeds."""
    sampler = {name: getattr(config, name) for name in SAMPLER}
    return {
        "model": asdict(model), "base": content(model.path), "device": device, "sampler": sampler,
        "rows": key_of(rows.to_dict("records")),
    }  # fmt: skip


def painter(side: Side, config: Evaluate, model: Model) -> Callable[[pd.DataFrame], np.ndarray]:
    """rows (prompt, seed) -> pictures (n, H, W, 3) uint8 of this side. The model is loaded at the first call."""
    loaded: list[Family] = []

    def draw(rows: pd.DataFrame) -> np.ndarray:
        if not loaded:
            loaded.append(load_family(replace(model, denoiser=side.denoiser) if side.denoiser else model))
            if side.lora is not None:
                loaded[0].load_lora(side.lora)
        settings = replace(config.sampler, guidance_scale=side.guidance_scale)
        return generate(loaded[0], rows["prompt"].tolist(), rows["seed"].tolist(), settings, "")

    return draw
