"""Sizes of the published scorers and judges, built from their configurations on the meta device.

A scorer's folder in lpo/presets/models says its shapes. The `score` stage loads the weights of all three scorers
together. To these comes the largest forward of one of them: CLIP-FlanT5 reads 576 patches and the question.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Qwen2VLConfig,
    Qwen2VLModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lpo.config import Params, Score, ScoreModels
from lpo.errors import LpoError
from lpo.families.parts import local
from lpo.scorers import hpsv3
from lpo.scorers.published import NAMES

META = torch.device("meta")
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUESTION = 160  # tokens around the patches: the system prompt, the question and a caption of 77


class Sized(nn.Module):
    """A model on the meta device whose forward reads n pictures."""

    def __init__(self, part: nn.Module, side: int, patches: int = 0) -> None:
        super().__init__()
        self.part, self.side, self.patches = part, side, patches

    def forward(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        pixels = torch.empty(n, 3, self.side, self.side, device=META, dtype=dtype)
        if not self.patches:
            return self.part(pixels).last_hidden_state
        t5: Any = self.part
        read = torch.empty(n, self.patches + QUESTION, t5.config.d_model, device=META, dtype=dtype)
        return t5(inputs_embeds=read, labels=torch.zeros(n, 2, device=META, dtype=torch.long)).logits


def config_of(cls: Any, source: str) -> Any:
    """Raises LpoError for a model that neither lpo/presets/models nor the hub's cache knows."""
    try:
        return cls.from_pretrained(local(source))
    except (OSError, ValueError) as error:
        raise LpoError("its configuration is not here", source, "allow the hub with HF_HUB_OFFLINE=0") from error


def scorers(models: ScoreModels) -> dict[str, list[nn.Module]]:
    """What the published scorers hold, by source, on the meta device; the first module of a list is what scores."""
    found: dict[str, list[nn.Module]] = {}
    with META:
        seen = config_of(CLIPVisionConfig, models.aesthetic)
        found[models.aesthetic] = [Sized(CLIPVisionModelWithProjection(seen), seen.image_size)]
        clip = CLIPModel(config_of(CLIPConfig, models.clip))
        found[models.clip] = [Sized(clip.vision_model, clip.config.vision_config.image_size), clip]
        if models.vqa_vision is None:
            found[models.vqa] = [AutoModelForImageTextToText.from_config(config_of(AutoConfig, models.vqa))]
            return found
        values = config_of(_Values, models.vqa)
        t5: Any = T5ForConditionalGeneration(T5Config(**values))
        eyes = CLIPModel(config_of(CLIPConfig, models.vqa_vision))
        looks = eyes.config.vision_config
        patches, width = (looks.image_size // looks.patch_size) ** 2, looks.hidden_size
        projector = nn.Sequential(nn.Linear(width, t5.config.d_model), nn.Linear(t5.config.d_model, t5.config.d_model))
        found[models.vqa] = [Sized(t5, looks.image_size, patches), projector]
        if values.get("tie_word_embeddings") is False:  # a head of its own, which the library ties until it is loaded
            found[models.vqa].append(nn.Linear(t5.config.d_model, t5.config.vocab_size, bias=False))
        found[models.vqa_vision] = [eyes]
    return found


class _Values:
    """A configuration of another type than any of the library's, as T5 reads it."""

    @staticmethod
    def from_pretrained(source: str) -> dict[str, Any]:
        values = T5Config.get_config_dict(source)[0]
        return {k: v for k, v in values.items() if k not in ("model_type", "architectures")}


def judges(params: Params) -> Iterator[tuple[str, list[nn.Module]]]:
    """(source, what it holds) of the judges that evaluate.judges names, beside the scorers."""
    models, named = params.evaluate.judge_models, params.evaluate.judges
    with META:
        if "pickscore" in named:
            yield models.pickscore, [CLIPModel(config_of(CLIPConfig, models.clip_h))]
        for name in ("hps_v2", "hps_v2_1"):  # a file of the repository each, of the same model
            if name in named:
                yield models.hps, [CLIPModel(config_of(CLIPConfig, models.clip_h))]
        if "imagereward" in named:
            file = Path(str(local(models.imagereward))) / "config.json"
            sizes = json.loads(file.read_text()) if file.exists() else None
            if sizes:
                reads = BlipTextModel(BlipTextConfig(**sizes["text_config"]), add_pooling_layer=False)
                yield models.imagereward, [BlipVisionModel(BlipVisionConfig(**sizes["vision_config"])), reads]
        if "hpsv3" in named:
            qwen = config_of(Qwen2VLConfig, models.hpsv3_base)
            yield models.hpsv3, [Qwen2VLModel(qwen).to(hpsv3.DTYPE)]  # its head has 0.05% of the weights
        if "geneval" in named:
            finds = config_of(Mask2FormerConfig, models.geneval_detector)
            yield models.geneval_detector, [Mask2FormerForUniversalSegmentation(finds)]
            yield models.geneval_clip, [CLIPModel(config_of(CLIPConfig, models.geneval_clip))]


def largest_judge(params: Params) -> int:
    """Bytes of the largest judge, of which one is in memory at a time, each in its own number format."""
    sizes = [
        sum(p.numel() * p.element_size() for part in parts for p in part.parameters()) for _, parts in judges(params)
    ]
    if {"aesthetic", "clipscore", "vqascore"} & set(params.evaluate.judges):
        models = params.score.models
        found = scorers(models)
        read = {"aesthetic": "aesthetic", "clipscore": "clip", "vqascore": "vqa"}
        for judge in set(read) & set(params.evaluate.judges):
            own = sources(models, [read[judge]])
            weights = sum(count(parts) for source, parts in found.items() if source in own)
            sizes.append(BYTES[models.dtype] * weights)
    return max(sizes, default=0)


def sources(models: ScoreModels, names: Collection[str]) -> set[str | None]:
    """Where the scorers of these names come from."""
    read: dict[str, set[str | None]] = {
        "aesthetic": {models.aesthetic}, "clip": {models.clip}, "vqa": {models.vqa, models.vqa_vision},
    }  # fmt: skip
    return {source for name in names for source in read[name]}


def loaded(config: Score, names: Collection[str] = NAMES) -> int:
    """Bytes of the scorers together in their number format; those of the embedded world are a few MB."""
    if config.scorers != "published":
        file = Path(config.scorers) / "scorers.safetensors"
        return file.stat().st_size if file.exists() else 0
    read, found = sources(config.models, names), scorers(config.models)
    return BYTES[config.models.dtype] * sum(count(parts) for source, parts in found.items() if source in read)


def count(parts: list[nn.Module]) -> int:
    """Weights of all parts, each once."""
    return sum(p.numel() for p in {id(p): p for part in parts for p in part.parameters()}.values())
