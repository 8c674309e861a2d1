"""Scorers and judges in the layout of their published files, see `sources.py`."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5ForConditionalGeneration,
)

from lpo.config import JudgeModels, ScoreModels
from lpo.doctor.memory import META
from lpo.doctor.scorer_memory import config_of
from lpo.errors import LpoError
from lpo.rehearsal import words
from lpo.rehearsal.weights import Shapes, shapes_of
from lpo.scorers import hps, imagereward

if TYPE_CHECKING:
    from lpo.rehearsal.sources import Models

KNOWN = ("pickscore", "imagereward", "hps_v2", "hps_v2_1", "aesthetic", "clipscore", "vqascore")
AESTHETIC_HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # outputs of the layers of LAION's predictor, by their numbers
REWARD_HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}  # of ImageReward's


def scorers(models: Models, named: ScoreModels, layers: int | None) -> ScoreModels:
    """The three of MPCF. Raises LpoError where the VQA model is not CLIP-FlanT5."""
    if named.vqa_vision is None:
        what = "only CLIP-FlanT5 can be rehearsed as the VQA model"
        raise LpoError(what, f"params.yaml: score.models.vqa: {named.vqa}", "set score.models.vqa_vision for it")
    patches = config_of(CLIPConfig, named.vqa_vision).vision_config.hidden_size

    def aesthetic(found: Path, target: Path) -> None:
        config = config_of(CLIPVisionConfig, str(found))
        (target / "config.json").write_text((found / "config.json").read_text())
        with META:
            shapes = shapes_of(CLIPVisionModelWithProjection(config))
        models.add(target / "model.safetensors", shapes | head("layers", AESTHETIC_HEAD, config.projection_dim))
        words.pictures(target, config.image_size)

    def vqa(found: Path, target: Path) -> None:
        config = json.loads((found / "config.json").read_text())
        if layers is not None:
            config |= {"num_layers": layers, "num_decoder_layers": layers}
        (target / "config.json").write_text(json.dumps(config, indent=2))
        models.add(target / "model.safetensors", flan_t5(config, patches))
        words.t5_tokenizer(target)

    folder = models.folder(named.vqa, vqa)
    return replace(
        named, aesthetic=models.folder(named.aesthetic, aesthetic), aesthetic_head=None, clip=models.clip(named.clip),
        vqa=folder, vqa_vision=models.clip(named.vqa_vision), vqa_tokenizer=folder,
    )  # fmt: skip


def flan_t5(config: dict[str, Any], patches: int) -> dict[str, torch.Size]:
    """T5 with a head of its own, and the projector from the patches of its CLIP."""
    values = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    width, vocabulary = config["d_model"], config["vocab_size"]
    with META:
        shapes = shapes_of(T5ForConditionalGeneration(T5Config(**values)))
    shapes |= {"lm_head.weight": torch.Size([vocabulary, width])}  # the library ties it until it is loaded
    return shapes | {
        "mm_projector.0.weight": torch.Size([width, patches]), "mm_projector.0.bias": torch.Size([width]),
        "mm_projector.2.weight": torch.Size([width, width]), "mm_projector.2.bias": torch.Size([width]),
    }  # fmt: skip


def head(prefix: str, outputs: dict[int, int], inputs: int) -> dict[str, torch.Size]:
    """Linear layers one after the other; the numbers between theirs are dropout."""
    shapes: dict[str, torch.Size] = {}
    for number, size in outputs.items():
        shapes[f"{prefix}.{number}.weight"] = torch.Size([size, inputs])
        shapes[f"{prefix}.{number}.bias"] = torch.Size([size])
        inputs = size
    return shapes


def judges(models: Models, names: Set[str | None], named: JudgeModels) -> JudgeModels:
    """The judges of KNOWN among `names`; the sources of others stay as they are."""

    def of_hps(found: Path, target: Path) -> None:
        for name in sorted({*hps.FILES} & names):
            with META:
                shapes = shapes_of(CLIPModel(config_of(CLIPConfig, str(found))))
            models.add(target / hps.FILES[name], open_clip(shapes), lambda state: {"state_dict": state})

    def of_imagereward(found: Path, target: Path) -> None:
        sizes = json.loads((found / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(sizes))
        (target / imagereward.TEXT_CONFIG).write_text(json.dumps(med_config(sizes["text_config"])))
        models.add(target / imagereward.WEIGHTS, image_reward(sizes), lambda state: state)
        words.bert_tokenizer(target)

    found: dict[str, str] = {}
    if {"pickscore", "hps_v2", "hps_v2_1"} & names:
        found["clip_h"] = models.clip(named.clip_h)
    if "pickscore" in names:
        found["pickscore"] = models.clip(named.pickscore)
    if {"hps_v2", "hps_v2_1"} & names:
        found["hps"] = models.folder(named.hps, of_hps, named.clip_h)
    if "imagereward" in names:
        found["imagereward"] = found["imagereward_tokenizer"] = models.folder(named.imagereward, of_imagereward)
    return replace(named, **found)


def open_clip(shapes: Shapes) -> dict[str, torch.Size]:
    """Names and shapes of a CLIPModel as OpenCLIP stores them: the inverse of `hps.clip_weights`."""
    names, inner = ({ours: theirs for theirs, ours in table.items()} for table in (hps.PARTS, hps.LAYER))
    found: dict[str, torch.Size] = {}
    for name, shape in shapes.items():
        if name in names:
            found[names[name]] = torch.Size(shape[::-1]) if names[name] in hps.TURNED else shape
            continue
        tower, number, part, kind = _layer(name)
        block = f"{'visual.' if tower.startswith('vision') else ''}transformer.resblocks.{number}."
        if part == "self_attn.q_proj":
            found[f"{block}attn.in_proj_{kind}"] = torch.Size([3 * shape[0], *shape[1:]])
        elif part in inner:
            found[f"{block}{inner[part]}.{kind}"] = shape
    return found


def image_reward(sizes: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of ImageReward.pt: the inverse of `imagereward.split_weights`."""
    with META:
        vision = shapes_of(BlipVisionModel(BlipVisionConfig(**sizes["vision_config"])))
        text = shapes_of(BlipTextModel(BlipTextConfig(**sizes["text_config"]), add_pooling_layer=False))
    tables = (imagereward.VISION, imagereward.LAYER)
    names, inner = ({ours: theirs for theirs, ours in table.items()} for table in tables)
    found = {imagereward.TEXT + name: shape for name, shape in text.items()}
    found |= head("mlp.layers", REWARD_HEAD, sizes["text_config"]["hidden_size"])
    for name, shape in vision.items():
        whole, kind = name.rpartition(".")[::2]
        if name in names:
            theirs = names[name]
        elif whole in names:
            theirs = f"{names[whole]}.{kind}"
        else:
            _, number, part, kind = _layer(name)
            theirs = f"blocks.{number}.{inner[part]}.{kind}"
        found[imagereward.VISUAL + theirs] = shape
    return found


def med_config(text: dict[str, Any]) -> dict[str, Any]:
    """med_config.json, whose names are BLIP's own."""
    config = BlipTextConfig(**text)
    same = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "max_position_embeddings", "layer_norm_eps", "hidden_act",
    )  # fmt: skip
    own = {"pad_token_id": 0, "encoder_width": text["encoder_hidden_size"]}
    return {name: getattr(config, name) for name in same} | own


def _layer(name: str) -> tuple[str, str, str, str]:
    """The four parts of "TOWER.encoder.layers.NUMBER.PART.KIND"."""
    tower, _, rest = name.partition("encoder.layers.")
    number, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    return tower, number, part, kind
