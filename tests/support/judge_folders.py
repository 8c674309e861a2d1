"""Folders with exactly the layout of the published judges, tiny and random."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.published_judges import MED, TINY_OPEN_CLIP, OpenClip, PublishedImageReward, randomise
from support.tiny_transformers import qwen_tokenizer
from torch import nn
from transformers import (
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SwinConfig,
)

from lpo.config import Params
from lpo.emoji.vocabulary import make_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "of", "photo", "red", "two"]


def clip_folder(folder: Path, seed: int = 0, image_size: int = 28) -> Path:
    """As CLIPModel, tokenizer and picture settings are saved: one folder for PickScore and its processor."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "projection_dim": 8,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": image_size, "patch_size": 14,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    randomise(model, seed)
    model.logit_scale.data = torch.tensor(3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(folder)
    return folder


def hps_folder(folder: Path, seed: int = 0) -> OpenClip:
    """HPS_v2_compressed.pt and HPS_v2.1_compressed.pt, in half precision; the model of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    models = []
    for place, name in enumerate(("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt")):
        model = OpenClip(len(tokenizer), tokenizer.model_max_length, **TINY_OPEN_CLIP)
        randomise(model, seed + place)
        state = {key: value.half() for key, value in model.state_dict().items()}
        model.load_state_dict({key: value.float() for key, value in state.items()})
        torch.save({"epoch": 1, "name": "tiny", "state_dict": state}, folder / name)
        models.append(model)
    return models[0].eval()


def imagereward_folder(folder: Path, seed: int = 0) -> PublishedImageReward:
    """ImageReward.pt, med_config.json and, for short, the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = PublishedImageReward(MED)
    randomise(model, seed)
    positions = {"blip.text_encoder.embeddings.position_ids": torch.arange(MED["max_position_embeddings"])[None]}
    unread = {f"blip.{part}_proj.{kind}": torch.ones(4) for part in ("vision", "text") for kind in ("weight", "bias")}
    torch.save(model.state_dict() | positions | unread, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED))
    BertTokenizer(vocab={word: place for place, word in enumerate(WORDS)}).save_pretrained(folder)
    return model.eval()


def detector_folder(folder: Path, seed: int = 0, labels: tuple[str, ...] = ("cat", "dog", "bench")) -> Path:
    """Mask2Former with a Swin backbone, as GenEval's detector is saved."""
    torch.manual_seed(seed)
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        encoder_layers=1, decoder_layers=2, num_attention_heads=2, dim_feedforward=16, num_queries=6,
        feature_strides=[4, 8, 16, 32], id2label=dict(enumerate(labels)),
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def hpsv3_folder(folder: Path, seed: int = 0, old_names: bool = False) -> dict[str, torch.Tensor]:
    """HPSv3.safetensors beside Qwen2-VL's configuration and tokenizer; the weights by the library's names.

    Without the reward token the tokenizer has one token fewer than the weights, as published. `old_names` is the layout
    of transformers before 4.52.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = qwen_tokenizer()
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.save_pretrained(folder)
    start, end, image, video = tokenizer.convert_tokens_to_ids(special)
    text = {
        "vocab_size": len(tokenizer) + 7, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end,
    )  # fmt: skip
    config.save_pretrained(folder)
    model = Qwen2VLForConditionalGeneration(config)
    model.resize_token_embeddings(len(tokenizer) + 1)
    randomise(model, seed)
    head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    randomise(head, seed + 1)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    weights |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    named = {name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value.clone()
             for name, value in weights.items()} if old_names else weights  # fmt: skip
    save_file(named, folder / "HPSv3.safetensors")
    return weights


def aesthetic_folder(folder: Path, seed: int = 0) -> Path:
    """LAION's predictor with its CLIP in one file, as on the hub."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    CLIPVisionModelWithProjection(vision).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    layers = nn.Sequential(
        nn.Linear(12, 10), nn.Dropout(0.2), nn.Linear(10, 8), nn.Dropout(0.2), nn.Linear(8, 6), nn.Dropout(0.1),
        nn.Linear(6, 4), nn.Linear(4, 1),
    )  # fmt: skip
    randomise(layers, seed)
    head = {f"layers.{name}": value for name, value in layers.state_dict().items()}
    save_file(load_file(folder / "model.safetensors") | head, folder / "model.safetensors")
    return folder


def with_tiny_judges(params: Params, folder: Path) -> Params:
    """Every judge of the presets, and GenEval's, from tiny folders below `folder`."""
    clip_folder(folder / "clip")
    hps_folder(folder / "hps")
    imagereward_folder(folder / "imagereward")
    detector_folder(folder / "detector")
    aesthetic_folder(folder / "aesthetic")
    models = replace(
        params.evaluate.judge_models, pickscore="clip", clip_h="clip", hps="hps", imagereward="imagereward",
        imagereward_tokenizer="imagereward", geneval_detector="detector", geneval_clip="clip",
    )  # fmt: skip
    scorers = replace(params.score.models, clip="clip", aesthetic="aesthetic", aesthetic_head=None, dtype="fp32")
    evaluate = replace(params.evaluate, judge_models=models)
    return replace(params, evaluate=evaluate, score=replace(params.score, models=scorers))
