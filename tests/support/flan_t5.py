"""CLIP-FlanT5 in the published layout, tiny and random: T5 with a projector, and the CLIP that it looks through."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SIDE = 16
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE,
    "patch_size": 8,
}  # fmt: skip
WORDS = ["<pad>", "</s>", "<unk>", "<image>", "Yes", "no", "a", "cat", "dog", "figure", "answer", "USER:"]


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def words() -> PreTrainedTokenizerFast:
    """One token a word, and an end of text after each call: what T5's tokenizer does, with twelve words."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    inner.add_special_tokens(["<image>"])  # found inside of words too
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def flan_t5_folders(t5: Path, vision: Path) -> None:
    """Write both models. Weights are drawn from torch's random stream."""
    words().save_pretrained(t5)
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(t5)
    projector = {
        "mm_projector.0.weight": torch.randn(16, 16), "mm_projector.0.bias": torch.randn(16),
        "mm_projector.2.weight": torch.randn(16, 16), "mm_projector.2.bias": torch.randn(16),
    }  # fmt: skip
    projector["lm_head.weight"] = torch.randn(len(WORDS), 16)  # Flan-T5's head is not its embedding
    save_file(load_file(t5 / "model.safetensors") | projector, t5 / "model.safetensors", {"format": "pt"})
    published = json.loads((t5 / "config.json").read_text()) | {
        "model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"], "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu",
    }  # fmt: skip
    (t5 / "config.json").write_text(json.dumps(published))
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(vision)
    image_processor().save_pretrained(vision)
