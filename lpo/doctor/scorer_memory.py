"""Sizes of the published scorers and judges, built from their configurations on the meta device.

A scorer's folder in lpo/presets/models says its shapes. The `score` stage loads the weights of all three scorers
together. To these comes the largest forward of one of them: CLIP-FlanT5 reads 576 patches and the question.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
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
from lpo.doctor.memory import META, bytes_of, peak
from lpo.doctor.rows import SMALL
from lpo.errors import LpoError
from lpo.families import DTYPES
from lpo.families.parts import local
from lpo.scorers import hpsv3
from lpo.scorers.published import NAMES

QUESTION = 160  # tokens around the patches: the system prompt, the question and a caption of 77


class Sized(nn.Module):
    """A model on the meta device whose forward reads n pictures, which come in float32."""

    def __init__(self, part: nn.Module, side: int, patches: int = 0) -> None:
        super().__init__()
        self.part, self.side, self.patches = part, side, patches

    def forward(self, n: int, dtype: torch.dtype) -> torch.Tensor:
        pixels = torch.empty(n, 3, self.side, self.side, device=META)
        if not self.patches:
            return self.part(pixels.to(dtype)).last_hidden_state
        t5: Any = self.part
        rows = torch.empty(2, n, self.patches + QUESTION, t5.config.d_model, device=META, dtype=dtype)  # and patches
        read, mask = rows[0].clone(), torch.empty(n, 1, rows.shape[2], rows.shape[2], device=META, dtype=dtype)
        labels = torch.zeros(n, 2, device=META, dtype=torch.long)
        states = t5.encoder(inputs_embeds=read, attention_mask=mask).last_hidden_state
        return t5(encoder_outputs=(states,), labels=labels).logits


class Head(nn.Sequential):
    """The linear layers behind LAION's predictor and ImageReward, always float32."""

    def __init__(self, inputs: int) -> None:
        sizes = (inputs, 1024, 128, 64, 16, 1)
        super().__init__(*(nn.Linear(a, b, device=META) for a, b in zip(sizes, sizes[1:], strict=False)))


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
        eye = Sized(CLIPVisionModelWithProjection(seen), seen.image_size)
        found[models.aesthetic] = [eye, Head(seen.projection_dim)]
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


def judges(params: Params) -> Iterator[tuple[str, str, list[nn.Module]]]:
    """(name, source, what it holds) of the judges that evaluate.judges names, beside the scorers.

    What looks at pictures comes first.
    """
    models, named = params.evaluate.judge_models, params.evaluate.judges
    with META:
        if "pickscore" in named:
            yield "pickscore", models.pickscore, _clip(models.clip_h)
        for name in ("hps_v2", "hps_v2_1"):  # a file of the repository each, of the same model
            if name in named:
                yield name, models.hps, _clip(models.clip_h)
        if "imagereward" in named:
            file = Path(str(local(models.imagereward))) / "config.json"
            sizes = json.loads(file.read_text()) if file.exists() else None
            if sizes:
                reads = BlipTextModel(BlipTextConfig(**sizes["text_config"]), add_pooling_layer=False)
                sees = BlipVisionModel(BlipVisionConfig(**sizes["vision_config"]))
                eye, judge = Sized(sees, sees.config.image_size), Head(sizes["text_config"]["hidden_size"])
                yield "imagereward", models.imagereward, [eye, reads, judge]
        if "hpsv3" in named:
            qwen = config_of(Qwen2VLConfig, models.hpsv3_base)
            yield "hpsv3", models.hpsv3, [Qwen2VLModel(qwen).to(hpsv3.DTYPE)]  # its head has 0.05% of the weights
        if "geneval" in named:
            finds = config_of(Mask2FormerConfig, models.geneval_detector)
            yield "geneval", models.geneval_detector, [Mask2FormerForUniversalSegmentation(finds)]
            yield "geneval's clip", models.geneval_clip, _clip(models.geneval_clip)


def _clip(source: str) -> list[nn.Module]:
    clip = CLIPModel(config_of(CLIPConfig, source))
    return [Sized(clip.vision_model, clip.config.vision_config.image_size), clip]


def judging(params: Params) -> dict[str, tuple[int, int]]:
    """(weights, what a batch of pictures makes) of each judge in its own number format.

    Of HPSv3 and of the detector of GenEval weights alone are counted.
    """
    named, n = params.evaluate.judges, params.evaluate.judge_batch_size
    found: dict[str, tuple[int, int]] = {}
    for name, _, parts in judges(params):
        looks = parts[0]
        step = peak(lambda one=looks: one(n, torch.float32)) if isinstance(looks, Sized) else 0  # type: ignore[misc]
        found[name] = bytes_of(*parts), step + n * SMALL
    score = replace(params.score, scorers="published", batch_size=n)
    for judge, scorer in {"aesthetic": "aesthetic", "clipscore": "clip", "vqascore": "vqa"}.items():
        if judge in named:
            found[judge] = loaded(score, [scorer]), forward(score, [scorer]) + n * SMALL
    return found


def forward(config: Score, names: Collection[str] = NAMES) -> int:
    """The largest forward of a published scorer on a batch."""
    if config.scorers != "published" or not names:
        return 0
    dtype, read = DTYPES[config.models.dtype], sources(config.models, names)
    firsts = [parts[0].to(dtype) for source, parts in scorers(config.models).items() if source in read]
    sized = [first for first in firsts if isinstance(first, Sized)]
    return max(peak(lambda one=one: one(config.batch_size, dtype)) for one in sized)  # type: ignore[misc]


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
    read, dtype = sources(config.models, names), DTYPES[config.models.dtype]
    found = [part for source, parts in scorers(config.models).items() if source in read for part in parts]
    return bytes_of(*(part if isinstance(part, Head) else part.to(dtype) for part in found))


def count(parts: list[nn.Module]) -> int:
    """Weights of all parts, each once."""
    return sum(p.numel() for p in {id(p): p for part in parts for p in part.parameters()}.values())
