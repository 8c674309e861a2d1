"""The published judges' architectures written out on plain torch, with the published names, for comparison.

OpenCLIP's ViT and text transformer, and BLIP's ViT and BERT, tiny and random. Nothing here knows the library's mapping.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn


def photo(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def randomise(module: nn.Module, seed: int) -> None:
    """Every weight random, layer norms too, so that a swapped name shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        if value.ndim == 0:
            continue  # the scale of a CLIP, which is set by hand
        spread = 0.3 if value.ndim == 1 else 1 / math.sqrt(value[0].numel())
        centre = 1.0 if name.endswith("weight") and value.ndim == 1 else 0.0
        value.data = centre + spread * torch.randn(value.shape, generator=generator)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, inner), "c_proj": nn.Linear(inner, width)})

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, inner) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(
        self, width: int, heads: int, inner: int, layers: int, size: int, patch: int, output: int
    ) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.proj = nn.Parameter(torch.empty(width, output))
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, inner, layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """ViT-H/14's layout: heads of 80 in the vision tower, of 64 in the text tower."""

    def __init__(self, vocabulary: int, length: int, visual: dict[str, int], text: dict[str, int]) -> None:
        super().__init__()
        self.visual = Visual(**visual)
        self.transformer = Blocks(**text)
        self.token_embedding = nn.Embedding(vocabulary, text["width"])
        self.positional_embedding = nn.Parameter(torch.empty(length, text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.empty(text["width"], visual["output"]))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(100)))

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.full((ids.shape[1], ids.shape[1]), -math.inf).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), ids.argmax(1)] @ self.text_projection  # the end of text has the highest id


TINY_OPEN_CLIP = {
    "visual": {"width": 160, "heads": 2, "inner": 320, "layers": 2, "size": 28, "patch": 14, "output": 24},
    "text": {"width": 128, "heads": 2, "inner": 256, "layers": 2},
}
VIT_H_14 = {
    "visual": {"width": 1280, "heads": 16, "inner": 5120, "layers": 32, "size": 224, "patch": 14, "output": 1024},
    "text": {"width": 1024, "heads": 16, "inner": 4096, "layers": 24},
}


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 2 * width), "fc2": nn.Linear(2 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, dim=2)
        x = x + self.attn["proj"](attend(q, k, v, self.heads))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, keep: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v of each head; `keep` (B, keys) is 0 where a key is padding."""
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    weights = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if keep is not None:
        weights = weights.masked_fill(keep[:, None, None] == 0, -math.inf)
    return (weights.softmax(3) @ v).transpose(1, 2).flatten(2)


class VisualEncoder(nn.Module):
    def __init__(self, width: int, heads: int, size: int, patch: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(VisionBlock(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Attention(nn.Module):
    """BERT's attention with its output layer, over the text itself or over what the vision tower saw."""

    def __init__(self, width: int, heads: int, seen: int) -> None:
        super().__init__()
        self.heads = heads
        self.self = nn.ModuleDict(
            {"query": nn.Linear(width, width), "key": nn.Linear(seen, width), "value": nn.Linear(seen, width)}
        )
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: torch.Tensor, source: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        y = attend(self.self["query"](x), self.self["key"](source), self.self["value"](source), self.heads, keep)
        return self.output["LayerNorm"](self.output["dense"](y) + x)


class TextLayer(nn.Module):
    def __init__(self, width: int, heads: int, seen: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width)
        self.crossattention = Attention(width, heads, seen)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 2 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(2 * width, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)})

    def forward(self, x: torch.Tensor, seen: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = self.crossattention(self.attention(x, x, keep), seen, None)
        return self.output["LayerNorm"](self.output["dense"](F.gelu(self.intermediate["dense"](x))) + x)


class TextEncoder(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, heads: int, seen: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {"word_embeddings": nn.Embedding(vocabulary, width), "position_embeddings": nn.Embedding(length, width),
             "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        )  # fmt: skip
        self.layers = [TextLayer(width, heads, seen) for _ in range(2)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(self.layers)})

    def forward(self, ids: torch.Tensor, keep: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        places = self.embeddings["position_embeddings"](torch.arange(ids.shape[1]))
        x = self.embeddings["LayerNorm"](self.embeddings["word_embeddings"](ids) + places)
        for layer in self.layers:
            x = layer(x, seen, keep)
        return x


class PublishedImageReward(nn.Module):
    """Heads of 64 in the vision tower, as ViT-L; the text tower as MED below says."""

    def __init__(self, med: dict) -> None:
        super().__init__()
        width = med["hidden_size"]
        self.blip = nn.ModuleDict(
            {"visual_encoder": VisualEncoder(width=med["encoder_width"], heads=2, size=32, patch=16),
             "text_encoder": TextEncoder(med["vocab_size"], med["max_position_embeddings"], width,
                                         med["num_attention_heads"], med["encoder_width"])}
        )  # fmt: skip
        self.mlp = nn.ModuleDict(
            {"layers": nn.Sequential(
                nn.Linear(width, 16), nn.Dropout(0.2), nn.Linear(16, 8), nn.Dropout(0.2), nn.Linear(8, 6),
                nn.Dropout(0.1), nn.Linear(6, 4), nn.Linear(4, 1)
            )}
        )  # fmt: skip

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        read = self.blip["text_encoder"](ids, keep, self.blip["visual_encoder"](pixels))
        return (self.mlp["layers"](read[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072


MED: dict[str, Any] = {  # the keys of the published med_config.json
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "hidden_size": 24, "initializer_range": 0.02, "intermediate_size": 48,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 40, "model_type": "bert", "num_attention_heads": 3,
    "num_hidden_layers": 2, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 14, "encoder_width": 128,
    "add_cross_attention": True,
}  # fmt: skip
