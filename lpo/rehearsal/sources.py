"""The folders of a preset's models in the hub's layout: configurations and tokenizers now, weights when it is sure.

    models = Models(Path("models"))
    params = with_models(params, models)     every source is a folder now
    models.bytes                             of the weights, which are not there yet
    models.write(generator)                  now they are

A source that is a folder with weights is used as it is. Any other one must have a configuration in lpo/presets/models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers import CLIPConfig, CLIPModel

from lpo.config import Params
from lpo.doctor.memory import META
from lpo.doctor.scorer_memory import config_of
from lpo.errors import LpoError
from lpo.families import parts
from lpo.paths import SPM
from lpo.rehearsal import judges, words
from lpo.rehearsal.weights import Shapes, Weights, shapes_of

CLIP_OF = {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}  # whose configuration it has
TRANSFORMERS, DIFFUSERS = "model.safetensors", "diffusion_pytorch_model.safetensors"


class Models:
    """Folders below `root`, one a source, and the files of weights that they still lack."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.missing: dict[Path, Weights] = {}

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.missing.values())

    def write(self, generator: torch.Generator) -> None:
        for file in self.missing.values():
            file.write(generator)
        self.missing = {}

    def add(self, path: Path, shapes: Shapes, pack: Callable[[dict[str, torch.Tensor]], object] | None = None) -> None:
        self.missing[path] = Weights(path, shapes, pack)

    def folder(self, source: str, fill: Callable[[Path, Path], None], like: str | None = None) -> str:
        """The folder of a source, filled by `fill(configurations, folder)` at the first call.

        Raises:
            LpoError: if there is no configuration of it.
        """
        if Path(source).is_dir() and any(Path(source).rglob("*.safetensors")):
            return str(Path(source).resolve())
        target = self.root / source.strip("/").replace("/", "--")
        if not target.exists():
            found = Path(str(parts.local(like or source)))
            if not found.is_dir():
                remedy = "name a folder with its configuration files, as lpo/presets/models has them"
                raise LpoError("the configuration of this model is not here", source, remedy)
            target.mkdir(parents=True)
            fill(found, target)
        return str(target)

    def family(self, source: str) -> str:
        """A pipeline: what model_index.json names."""

        def fill(found: Path, target: Path) -> None:
            shutil.copy(found / "model_index.json", target)
            for part, value in json.loads((found / "model_index.json").read_text()).items():
                if not part.startswith("_") and isinstance(value, list) and value[0] is not None:
                    self._part(found, target, part, *value)

        return self.folder(source, fill)

    def _part(self, found: Path, target: Path, part: str, library: str, name: str) -> None:
        (target / part).mkdir()
        if part.startswith("tokenizer"):
            config = json.loads((found / part.replace("tokenizer", "text_encoder") / "config.json").read_text())
            self.tokenizer(target / part, config)
            return
        for file in (found / part).glob("*config.json"):
            shutil.copy(file, target / part)
        if part != "scheduler":
            cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], name)
            file_name = DIFFUSERS if library == "diffusers" else TRANSFORMERS
            shapes = shapes_of(parts.module(cls, str(found), part, torch.float16, META))
            self.add(target / part / file_name, shapes)

    def tokenizer(self, folder: Path, config: dict[str, Any]) -> None:
        """Of the text encoder with this configuration."""
        if "d_model" in config:
            words.t5_tokenizer(folder)
        elif config.get("model_type", "").startswith("qwen"):
            words.qwen_tokenizer(folder)
        else:
            words.clip_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"])

    def module(self, source: str) -> str:
        """A part of a pipeline by itself: another VAE or denoiser."""

        def fill(found: Path, target: Path) -> None:
            shutil.copy(found / "config.json", target)
            cls = getattr(diffusers, json.loads((found / "config.json").read_text())["_class_name"])
            self.add(target / DIFFUSERS, shapes_of(parts.module(cls, str(found), "", torch.float16, META)))

        return self.folder(source, fill)

    def clip(self, source: str) -> str:
        """A CLIPModel with its tokenizer and picture settings."""

        def fill(found: Path, target: Path) -> None:
            config = config_of(CLIPConfig, str(found))
            shutil.copy(found / "config.json", target)
            with META:
                self.add(target / TRANSFORMERS, shapes_of(CLIPModel(config)))
            self.tokenizer(target, config.text_config.to_dict())
            words.pictures(target, config.vision_config.image_size)

        return self.folder(source, fill, CLIP_OF.get(source, source))


def with_models(params: Params, models: Models, layers: int | None = None) -> Params:
    """The parameters with a folder in the place of each model that the run reads.

    Args:
        layers: of the encoder and of the decoder of CLIP-FlanT5; None: all.

    Raises:
        LpoError: for a model without a configuration here.
    """
    model, score, config, named = params.model, params.score, params.reward, params.evaluate.judge_models
    scorers = judges.scorers(models, score.models, layers)
    model = replace(
        model, path=models.family(model.path), vae=models.module(model.vae) if model.vae else None,
        denoiser=models.module(model.denoiser) if model.denoiser else None,
    )  # fmt: skip
    copied = config.text_projection not in ("random", "none")
    reward = replace(
        config, base=models.family(config.base) if config.base else None,
        text_projection=models.clip(config.text_projection) if copied else config.text_projection,
    )  # fmt: skip
    spm = params.spm
    if Path(params.tune.reward) == SPM:
        spm = replace(spm, clip=models.clip(spm.clip), tokenizer=models.clip(spm.tokenizer) if spm.tokenizer else None)
    read = {*params.evaluate.judges, params.tune.blind}
    evaluate = replace(params.evaluate, judge_models=judges.judges(models, read, named))
    return replace(params, model=model, score=replace(score, models=scorers), reward=reward, spm=spm, evaluate=evaluate)
