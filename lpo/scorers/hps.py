"""HPSv2 and HPSv2.1: an OpenCLIP ViT-H/14 tuned on rankings of people, run as a CLIPModel of transformers.

    HPS(x, c) = 100 cos(x, c)                                               about 24 to 32

The published package gives the cosine; the factor is that of every table. Its own copy of OpenCLIP is not needed: the
weights are the same under other names (`clip_weights`), and the sizes are read from their shapes.

Pictures, as the published code reads them: the longer side to 224 pixels (bicubic, on values in 0..1), black bars
around what is not square. Resizing is antialiased, as torchvision does it since 0.17; older versions did not, so
figures of old runs can differ a little. Prompts are cleaned as OpenCLIP cleans them (`cleaned`).
Source: Wu et al. 2023 (arXiv 2306.09341); weights xswu/HPSv2, HPS_v2_compressed.pt and HPS_v2.1_compressed.pt.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ftfy
import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from lpo.errors import LpoError
from lpo.hub import file_of, fill, tokenizer_of, weights_of
from lpo.scorers.clip_pair import ClipPair

FILES = {"hps_v2": "HPS_v2_compressed.pt", "hps_v2_1": "HPS_v2.1_compressed.pt"}
HEAD_WIDTH = {"vision": 80, "text": 64}  # of ViT-H/14; shapes do not tell them
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's pictures
PARTS = {  # OpenCLIP -> transformers, outside the layers
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
TURNED = ("visual.proj", "text_projection")  # x @ W there, W @ x here
UNUSED = ("attn_mask",)  # the causal mask, which some files store


@dataclass(frozen=True)
class HPS:
    clip: ClipPair

    @torch.no_grad()
    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32 of N pictures and their prompts."""
        size = self.clip.model.config.vision_config.image_size
        seen, read = torch.stack([pixels(p, size) for p in pictures]), [cleaned(prompt) for prompt in prompts]
        return 100 * self.clip.cosine(seen, read).cpu()


def cleaned(prompt: str) -> str:
    """A prompt as OpenCLIP reads it: repaired by ftfy, HTML decoded twice, runs of white space as one, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split()).lower()


def load(version: str, model: str, tokenizer: str, device: torch.device) -> HPS:
    """`version` is hps_v2 or hps_v2_1; `model` and `tokenizer` are folders or hub ids.

    Raises:
        LpoError: if a file is missing, runs code, or is no OpenCLIP ViT.
    """
    path = file_of(model, FILES[version])
    words = tokenizer_of(CLIPTokenizer, tokenizer)
    published = weights_of(path)
    if not isinstance(published.get("state_dict"), dict):
        raise LpoError("there is no state_dict in it", str(path), f"take {FILES[version]} of xswu/HPSv2")
    try:
        config = clip_config(published["state_dict"], words)
        weights = clip_weights(published["state_dict"])
    except KeyError as error:
        remedy = f"take {FILES[version]} of xswu/HPSv2"
        raise LpoError(f"unknown or missing weight {error}", str(path), remedy) from error
    return HPS(ClipPair(fill(CLIPModel(config), weights, str(path)).to(device), words))


def clip_config(published: Mapping[str, torch.Tensor], tokenizer: CLIPTokenizer) -> CLIPConfig:
    """Sizes of the model that OpenCLIP weights belong to. Raises KeyError on weights of another kind."""

    def tower(prefix: str, kind: str, width: int) -> dict[str, int | str]:
        layers = {name.split(".")[-4] for name in published if name.startswith(prefix) and name.endswith("c_fc.weight")}
        return {
            "hidden_size": width, "num_hidden_layers": len(layers), "num_attention_heads": width // HEAD_WIDTH[kind],
            "intermediate_size": len(published[f"{prefix}0.mlp.c_fc.weight"]), "hidden_act": "gelu",
        }  # fmt: skip

    patches, words = published["visual.conv1.weight"], published["token_embedding.weight"]
    side = round((len(published["visual.positional_embedding"]) - 1) ** 0.5)
    vision = tower("visual.transformer.resblocks.", "vision", len(patches)) | {
        "patch_size": patches.shape[-1], "image_size": side * patches.shape[-1],
    }  # fmt: skip
    text = tower("transformer.resblocks.", "text", words.shape[1]) | {
        "vocab_size": len(words), "max_position_embeddings": len(published["positional_embedding"]),
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=published["text_projection"].shape[1])


def clip_weights(published: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's names and layouts -> those of CLIPModel. Raises KeyError on a name that no ViT of OpenCLIP has."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in published.items():
        if name in UNUSED:
            continue
        head, block, rest = name.partition("transformer.resblocks.")
        if not block:
            weights[PARTS[name]] = value.T if name in TURNED else value
            continue
        number, _, part = rest.partition(".")
        layer = f"{'vision' if head else 'text'}_model.encoder.layers.{number}."
        if part.startswith("attn.in_proj_"):  # queries, keys and values are one matrix there
            kind = part.removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                weights[f"{layer}self_attn.{letter}_proj.{kind}"] = third
        else:
            part, _, kind = part.rpartition(".")
            weights[f"{layer}{LAYER[part]}.{kind}"] = value
    return weights


def pixels(picture: Image, size: int) -> torch.Tensor:
    """A picture -> normalised pixels (3, size, size); see the top of this file."""
    values = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    height, width = (round(side * size / max(values.shape[2:])) for side in values.shape[2:])
    values = F.interpolate(values, (height, width), mode="bicubic", align_corners=False, antialias=True)[0]
    top, left = (size - height) // 2, (size - width) // 2
    values = F.pad(values, (left, size - width - left, top, size - height - top))
    return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
