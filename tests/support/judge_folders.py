"""Folders with exactly the layout of the published judges, tiny and random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from support.published_judges import MED, TINY_OPEN_CLIP, OpenClip, PublishedImageReward, randomise
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from lpo.emoji.vocabulary import make_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "of", "photo", "red", "two"]


def clip_folder(folder: Path, seed: int = 0, image_size: int = 28) -> Path:
    """As CLIPModel, tokenizer and picture settings are saved: one folder for PickScore and its processor."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
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
