"""ImageReward: BLIP ViT-L with a head of five linear layers, run on the BLIP of transformers.

    h = text(c, cross-attention to vision(x))_[CLS]                         (B, 768)
    ImageReward(x, c) = (W_5 ... W_1 h - 0.16717363) / 1.03333949           no activation between the layers

The published file's weights go into BlipVisionModel and BlipTextModel under those models' names (`split_weights`); the
vision tower's sizes are read from shapes, the text tower's from med_config.json. Captions are cut at 35 tokens.
Source: Xu et al. 2023 (arXiv 2304.05977); weights THUDM/ImageReward, ImageReward.pt; tokenizer bert-base-uncased.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPImageProcessorPil,
)

from lpo.errors import LpoError
from lpo.hub import file_of, fill, tokenizer_of, weights_of
from lpo.scorers.clip_pair import Pixels

WEIGHTS, TEXT_CONFIG = "ImageReward.pt", "med_config.json"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores in its training data
TOKENS = 35
VISION_HEAD_WIDTH = 64  # of ViT-L; shapes do not tell it
VISION_EPS = 1e-6  # of its layer norms
VISION = {  # the published ViT -> BlipVisionModel
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm",
}  # fmt: skip
LAYER = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
VISUAL, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNUSED = (  # 0, 1, 2, ...; and the two projections of BLIP's pretraining, which the score does not read
    "blip.text_encoder.embeddings.position_ids", "blip.vision_proj.weight", "blip.vision_proj.bias",
    "blip.text_proj.weight", "blip.text_proj.bias",
)  # fmt: skip


@dataclass(frozen=True)
class ImageReward:
    vision: BlipVisionModel
    text: BlipTextModel
    head: nn.Sequential
    tokenizer: BertTokenizer
    pixels: Pixels

    @torch.no_grad()
    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32 of N pictures and their prompts."""
        device = self.vision.device
        words = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(device)
        seen = self.vision(self.pixels(pictures).to(device)).last_hidden_state
        read = self.text(
            input_ids=words.input_ids, attention_mask=words.attention_mask, encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=device), is_decoder=False,
        ).last_hidden_state  # fmt: skip
        return ((self.head(read[:, 0])[:, 0] - MEAN) / STD).cpu()


def load(model: str, tokenizer: str, device: torch.device) -> ImageReward:
    """Folders or hub ids.

    Raises:
        LpoError: if a file is missing, runs code, or holds other weights.
    """
    path, sizes_of_text = file_of(model, WEIGHTS), file_of(model, TEXT_CONFIG)
    words = tokenizer_of(BertTokenizer, tokenizer)
    try:
        vision, language, head = split_weights(weights_of(path))
        seeing, reading = vision_config(vision), text_config(json.loads(sizes_of_text.read_text()))
        places = sorted({int(name.split(".")[0]) for name in head})
        sizes = [head[f"{place}.weight"].shape for place in places]
    except (KeyError, ValueError) as error:
        remedy = "take it of THUDM/ImageReward"
        raise LpoError(f"unknown or missing weight or size: {error}", str(path), remedy) from error
    layers: list[nn.Module] = [nn.Identity() for _ in range(places[-1] + 1)]  # dropout, where there is no weight
    for place, (outputs, inputs) in zip(places, sizes, strict=True):
        layers[place] = nn.Linear(inputs, outputs)
    side = seeing.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return ImageReward(
        fill(BlipVisionModel(seeing), vision, str(path)).to(device),
        fill(BlipTextModel(reading, add_pooling_layer=False), language, str(path)).to(device),
        fill(nn.Sequential(*layers), head, str(path)).to(device),
        words,
        Pixels(processor),
    )


def split_weights(published: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    """Published names -> weights of (BlipVisionModel, BlipTextModel, head). Raises KeyError on an unknown name."""
    vision: dict[str, torch.Tensor] = {}
    text: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for name, value in published.items():
        if name in UNUSED:
            continue
        if name.startswith(TEXT):  # the text tower has the same names
            text[name.removeprefix(TEXT)] = value
        elif name.startswith(HEAD):
            head[name.removeprefix(HEAD)] = value
        elif name.startswith(VISUAL):
            vision[_vision_name(name.removeprefix(VISUAL))] = value
        else:
            raise KeyError(name)
    return vision, text, head


def _vision_name(name: str) -> str:
    if name in VISION:
        return VISION[name]
    part, _, kind = name.rpartition(".")
    if not part.startswith("blocks."):
        return f"{VISION[part]}.{kind}"
    _, number, part = part.split(".", 2)
    return f"encoder.layers.{number}.{LAYER[part]}.{kind}"


def vision_config(weights: Mapping[str, torch.Tensor]) -> BlipVisionConfig:
    """Sizes of the vision tower, from its weights. Raises KeyError on weights of another kind."""
    patches = weights["embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    side = round((weights["embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    return BlipVisionConfig(
        hidden_size=width, intermediate_size=len(weights["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=sum(name.endswith("mlp.fc1.weight") for name in weights),
        num_attention_heads=width // VISION_HEAD_WIDTH, image_size=side * patch, patch_size=patch,
        layer_norm_eps=VISION_EPS,
    )  # fmt: skip


def text_config(published: Mapping[str, int | float | str]) -> BlipTextConfig:
    """med_config.json -> the text tower's sizes. Raises KeyError where a size is missing."""
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
            "max_position_embeddings", "layer_norm_eps", "hidden_act", "pad_token_id")  # fmt: skip
    return BlipTextConfig(
        **{name: published[name] for name in same}, encoder_hidden_size=published["encoder_width"], is_decoder=True,
        bos_token_id=None, eos_token_id=None, sep_token_id=None,
    )  # fmt: skip
