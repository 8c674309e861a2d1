"""Models of a preset on the meta device as the stages load them, with tokenizers and processors that read nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    T5Config,
    T5ForConditionalGeneration,
)

from lpo.config import Params, ScoreModels
from lpo.families import DTYPES, load_family
from lpo.families.family import Family
from lpo.families.parts import local
from lpo.paths import SPM
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import CLIP_MEAN, CLIP_STD, StepPreferenceModel
from lpo.scorers.aesthetic import Aesthetic
from lpo.scorers.clip_pair import ClipPair
from lpo.scorers.clip_score import ClipScore
from lpo.scorers.hps import HPS
from lpo.scorers.imagereward import ImageReward
from lpo.scorers.pickscore import PickScore
from lpo.scorers.published import Published
from lpo.scorers.vqa import ClipFlanT5
from lpo.train.policy.validation import Validation

META = torch.device("meta")
PICKSCORE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # whose configuration it has
HEAD = (1024, 128, 64, 16, 1)
PROMPT = 77  # words of a caption: the longest that CLIP reads


class Read(SimpleNamespace):
    """What a processor or a tokenizer gives."""

    def to(self, device: torch.device) -> Read:
        return Read(**{name: value.to(device) for name, value in vars(self).items()})


class Reader:
    """A processor of pictures of a size, and a tokenizer of a length; None: a token a word."""

    image_mean = (0.5, 0.5, 0.5)

    def __init__(self, side: int = 0, length: int | None = PROMPT) -> None:
        self.side, self.model_max_length = side, length
        self.init_kwargs: dict[str, Any] = {}

    def __call__(self, texts: Any = None, *, images: Any = None, text: Any = None, **_: Any) -> Read:
        found: dict[str, torch.Tensor] = {}
        shown = images if images is not None else texts if self.side and text is None else None
        if shown is not None:
            found["pixel_values"] = torch.zeros(len(shown), 3, self.side, self.side)
        words = text if text is not None else texts if shown is not texts else None
        if words is not None:
            rows = [words] if isinstance(words, str) else words
            length = self.model_max_length or max(len(row.split()) for row in rows)
            found["input_ids"] = torch.zeros(len(rows), length, dtype=torch.long)
            found["attention_mask"] = torch.ones(len(rows), length, dtype=torch.long)
        return Read(**found)


def captions(n: int) -> list[str]:
    return [" ".join(["a"] * PROMPT)] * n


def pictures(n: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8))] * n


def frozen(module: nn.Module, dtype: torch.dtype = torch.float32) -> Any:
    return module.to(dtype).requires_grad_(False).eval()


def head(width: int) -> nn.Sequential:
    layers = [nn.Linear(a, b, device=META) for a, b in zip((width, *HEAD), HEAD, strict=False)]
    return frozen(nn.Sequential(*layers))


def clip(source: str, dtype: torch.dtype = torch.float32) -> CLIPModel:
    with META:
        return frozen(CLIPModel(CLIPConfig.from_pretrained(local(source))), dtype)


def scorers(named: ScoreModels, names: Collection[str]) -> Published:
    """The scorers of MPCF, as lpo/scorers/published.py loads them."""
    dtype, found = DTYPES[named.dtype], cast(dict[str, Any], {})
    if "aesthetic" in names:
        config = CLIPVisionConfig.from_pretrained(local(named.aesthetic))
        with META:
            vision = frozen(CLIPVisionModelWithProjection(config), dtype)
        found["aesthetic"] = Aesthetic(vision, head(config.projection_dim), cast(Any, Reader(config.image_size)))
    if "clip" in names:
        model = clip(named.clip, dtype)
        found["clip"] = ClipScore(model, cast(Any, Reader(model.config.vision_config.image_size)))
    if "vqa" in names:
        assert named.vqa_vision is not None
        values = T5Config.get_config_dict(local(named.vqa))[0]
        values = {k: v for k, v in values.items() if k not in ("model_type", "architectures")}
        eyes = CLIPConfig.from_pretrained(local(named.vqa_vision)).vision_config
        with META:
            t5 = T5ForConditionalGeneration(T5Config(**values))
            if not t5.config.tie_word_embeddings:
                t5.lm_head = nn.Linear(t5.config.d_model, t5.config.vocab_size, bias=False)
            seen = CLIPVisionModel(eyes)
            layers = nn.Linear(eyes.hidden_size, t5.config.d_model), nn.Linear(t5.config.d_model, t5.config.d_model)
        projector = frozen(nn.Sequential(layers[0], nn.GELU(), layers[1]), dtype)
        reader, words = Reader(eyes.image_size), Reader(0, None)
        found["vqa"] = ClipFlanT5(frozen(t5, dtype), projector, frozen(seen, dtype), words, reader, -2)
    return Published(found)


def judges(params: Params) -> dict[str, Any]:
    """By the names of doctor's moments."""
    named, wanted = params.evaluate.judge_models, params.evaluate.judges
    found: dict[str, Any] = {}

    def pair(source: str) -> tuple[ClipPair, Any]:
        model = clip(source)
        return ClipPair(model, cast(Any, Reader())), Reader(model.config.vision_config.image_size)

    if "pickscore" in wanted:
        both, reader = pair(named.clip_h)
        found["pickscore"] = PickScore(both, cast(Any, lambda shown: reader(shown).pixel_values))
    for name in ("hps_v2", "hps_v2_1"):
        if name in wanted:
            found[name] = HPS(pair(named.clip_h)[0])
    if "imagereward" in wanted:
        sizes = json.loads((Path(str(local(named.imagereward))) / "config.json").read_text())
        with META:
            seeing = frozen(BlipVisionModel(BlipVisionConfig(**sizes["vision_config"])))
            reading = frozen(BlipTextModel(BlipTextConfig(**sizes["text_config"]), add_pooling_layer=False))
        reader = Reader(seeing.config.image_size)
        found["imagereward"] = ImageReward(
            seeing, reading, head(sizes["text_config"]["hidden_size"]), cast(Any, Reader(0, 35)),
            cast(Any, lambda shown: reader(shown).pixel_values),
        )  # fmt: skip
    if "aesthetic" in wanted:
        own = scorers(params.score.models, ["aesthetic"]).models["aesthetic"]
        found["aesthetic"] = SimpleNamespace(score=lambda shown, _: own.score(shown), whole=own)
    return found


def modules_of(scorer: Any) -> list[nn.Module]:
    """All modules inside of a scorer, a judge, or several."""
    if isinstance(scorer, nn.Module):
        return [scorer]
    if isinstance(scorer, dict):
        return [module for value in scorer.values() for module in modules_of(value)]
    inner = getattr(scorer, "__dict__", None)
    return modules_of(inner) if inner else []


def family(params: Params) -> Family:
    """The model, whose prompts are tokens without numbers."""
    return told(load_family(params.model, device=META))


def told(found: Family) -> Family:
    def tokenize(prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), found.token_columns).long()

    found.tokenize = tokenize  # type: ignore[method-assign]
    return found


def _backbone(params: Params, dtype: torch.dtype | None) -> Family:
    config, base = params.reward, params.model
    if config.base is not None:
        base = replace(base, path=config.base, vae=None, denoiser=None)
    return told(load_family(replace(base, denoiser=None), True, config.layer, dtype, META))


def _latent(params: Params, backbone: Family) -> LatentRewardModel:
    config = params.reward
    projection = "none" if config.text_projection == "none" else "random"
    rank = config.adapter_rank if config.trainable == "adapter" else None
    with META:
        model = LatentRewardModel(
            backbone, config.embedding_dim, config.guidance_scale, config.features, projection, None, rank
        )
    return model.requires_grad_(False)


def reward_to_train(params: Params) -> LatentRewardModel:
    """As `lpo reward` loads it, convolutions as on CUDA."""
    adapter = params.reward.trainable == "adapter"
    model = _latent(params, _backbone(params, None if adapter else torch.float32))
    for part in model.backbone.modules().values():
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def reward_of_tune(params: Params, found: Family | None) -> LatentRewardModel | StepPreferenceModel:
    """As `lpo tune` loads it; an adapter of `found`, if it is one."""
    if Path(params.tune.reward) == SPM:
        return spm(params, found)
    if params.reward.trainable == "adapter" and found is not None:
        layer: dict[str, Any] = {"layer": params.reward.layer} if params.reward.layer else {}
        return _latent(params, told(replace(found, **layer)))
    return _latent(params, _backbone(params, None)).eval()


def spm(params: Params, found: Family | None = None) -> StepPreferenceModel:
    found = found or family(params)
    model = StepPreferenceModel(
        found, clip(PICKSCORE), cast(Any, Reader()), CLIP_MEAN, CLIP_STD, params.spm.guidance_scale
    )
    return model.requires_grad_(False)


class Quiet(Validation):
    """A validation that is ready, without the figures of the base, whose latents are in a file."""

    shown: Any = None

    def __init__(self, params: Params, found: Family, reward: Any, prompts: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, count in (("validation", 1), ("diversity", params.tune.guard.seeds)):
                save_file({"latents": torch.zeros(count, *found.latent_shape)}, Path(folder) / f"{name}.safetensors")
            super().__init__(
                found, reward, cast(Any, None), list(params.tune.validation_scorers), list(prompts),
                params.evaluate.sampler, params.score.batch_size, params.tune.guard, Path(folder),
            )  # fmt: skip
        self.sampler = replace(self.sampler, num_inference_steps=1)

    def scores(self, latents: torch.Tensor) -> dict[str, Any]:
        return {}

    def diversity(self, latents: torch.Tensor) -> float:
        return 1.0
