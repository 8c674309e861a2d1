"""The scorers of the embedded world, for MPCF and for validation: small, learned from renders, seeds of their own.

clip       cos(image, text) of a CLIPModel trained contrastively against near-misses
aesthetic  an MLP on that CLIP's image embedding, 0..10, as the LAION predictor is one on CLIP-L's
vqa        P("yes") of a small transformer that is asked: does this picture show this caption?

They stand behind the interface of the real ones: pictures and captions in, one number a picture out.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lpo.errors import LpoError

CLIP = {
    "projection_dim": 64,
    "text_config": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision_config": {
        "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip
VQA_WIDTH = 96


class YesNo(nn.Module):
    """P(yes | picture, caption): picture tokens of a convolutional stem and caption tokens in one transformer."""

    def __init__(self, vocabulary: int, length: int, places: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 48, 4, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(48, VQA_WIDTH, 4, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(VQA_WIDTH, VQA_WIDTH, 4, stride=2, padding=1),
        )  # fmt: skip
        self.words = nn.Embedding(vocabulary, VQA_WIDTH)
        self.position = nn.Parameter(torch.randn(1 + length + places, VQA_WIDTH) * 0.02)
        self.asked = nn.Parameter(torch.zeros(1, 1, VQA_WIDTH))
        layer = nn.TransformerEncoderLayer(VQA_WIDTH, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.mix = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.answer = nn.Linear(VQA_WIDTH, 1)

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits of yes (B,) for images (B, 3, H, W) in [-1, 1] and token ids (B, L)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        sequence = torch.cat([self.asked.expand(len(ids), 1, -1), self.words(ids), tokens], dim=1)
        return self.answer(self.mix(sequence + self.position)[:, 0])[:, 0]


class Scorers(nn.Module):
    """The three models over one tokenizer."""

    size = CLIP["vision_config"]["image_size"]  # type: ignore[index]  # pixels of the square that pictures must be

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        text = CLIP["text_config"] | {
            "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }  # type: ignore[operator] # fmt: skip
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP["vision_config"], projection_dim=64))
        self.aesthetic = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1))
        self.vqa = YesNo(len(tokenizer), tokenizer.model_max_length, places=16)

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Unit image embeddings (B, 64) of images (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.clip.visual_projection(self.clip.vision_model(images).pooler_output), dim=1)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.clip.text_projection(self.clip.text_model(ids).pooler_output), dim=1)

    def predict_aesthetic(self, embedding: torch.Tensor) -> torch.Tensor:
        return 5 + 5 * self.aesthetic(embedding)[:, 0]

    @torch.no_grad()
    def score(self, images: torch.Tensor, captions: list[str]) -> dict[str, torch.Tensor]:
        """aesthetic, clip and vqa, (N,) each, of images (N, 3, H, W) in [-1, 1] and their captions."""
        ids = self.tokenize(captions)
        embedding = self.embed(images)
        return {
            "aesthetic": self.predict_aesthetic(embedding),
            "clip": (embedding * self.embed_text(ids)).sum(1),
            "vqa": torch.sigmoid(self.vqa(images, ids)),
        }

    def save(self, folder: Path) -> None:
        """Write half-precision safetensors and the tokenizer."""
        self.tokenizer.save_pretrained(folder)
        weights = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(weights, folder / "scorers.safetensors")
        (folder / "config.json").write_text(json.dumps({"type": "small"}) + "\n")


def load(folder: Path) -> Scorers:
    """Load what `save` wrote, in float32 and frozen. Raises LpoError where files are missing."""
    try:
        weights = load_file(folder / "scorers.safetensors")
        scorers = Scorers(CLIPTokenizer.from_pretrained(folder))
    except (OSError, ValueError) as error:
        raise LpoError(f"no scorers here: {error}", str(folder), "run `lpo base`, or correct score.scorers") from error
    scorers.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    return scorers.requires_grad_(False).eval()
