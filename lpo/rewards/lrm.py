"""The latent reward model (LPO paper, section 3.2; figures and names in docs/decisions.md).

    S(p, x_t) = exp(logit_scale) <V / |V|, T / |T|>
    T = W_t f_eos(p)                                        (B, D), or f_eos itself (LRM-XL)
    V = W_v [V_down ; V_enh]                                (B, D)
    V_enh = V_mid(null) + gs (V_mid(p) - V_mid(null))       visual feature enhancement, gs = 1 switches it off

V_down and V_mid are spatial means inside a denoiser's down and mid blocks at the noisy latent x_t; of a transformer
there is one layer instead. Cosine and scale are computed in float32 (at a score of 25, fp16 resolves 0.016 only).

A saved model is a folder in diffusers' layout, each part with its config.json:
    unet/ or transformer/ (its first half)   text_encoder*/   tokenizer*/   scheduler/   vae/ (config only)
    reward.safetensors (projections and scale)   config.json   README.md
A model trained as an adapter is a low-rank change of the denoiser that it was trained on, active while it scores.
Policy, reference and reward are then three states of one set of weights, and the folder holds the adapter and the
projections alone, some megabytes.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextModelWithProjection

from lpo.errors import LpoError
from lpo.families import family_class, lora, parts
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.families.latent_space import LatentSpace, space_of

INITIAL_LOGIT_SCALE = 2.6592  # ln(1 / 0.07), as CLIP
HEADS = "reward.safetensors"


class LatentRewardModel(nn.Module):
    """A backbone (a family without VAE and without what no reward runs) with two projections and a scale.

    Args:
        embedding_dim: D. Without a text projection it is the width of the text feature.
        features: "multi_scale" reads down blocks and mid block, "mid" the mid block only.
        text_projection: "random", "none", or a CLIP model (folder or hub id) whose projection it starts from.
        latent_space: of the latents that it is trained on.
        adapter_rank: of a LoRA in the backbone's down and mid blocks; then nothing else of the backbone is its own.

    Raises:
        LpoError: if D doesn't fit the text feature, or the CLIP.
    """

    space = "latent"

    def __init__(
        self, backbone: Family, embedding_dim: int, guidance_scale: float, features: str,
        text_projection: str = "random", latent_space: LatentSpace | None = None, adapter_rank: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.latent_space, self.adapter_rank = backbone, latent_space, adapter_rank
        if adapter_rank is None:
            for name, part in backbone.modules().items():
                self.add_module(name, part)
        else:
            adapter = lora.attach(backbone.denoiser, adapter_rank, backbone.reward_targets, lora.REWARD)
            self.adapter = nn.ParameterDict({name.replace(".", "/"): p for name, p in adapter.items()})
        self.guidance_scale, self.features = guidance_scale, features
        visual, text = probe_widths(backbone, features)
        device = backbone.device
        self.visual_projection = nn.Linear(visual, embedding_dim, bias=False, device=device)
        self.text_projection = (
            nn.Identity() if text_projection == "none" else nn.Linear(text, embedding_dim, bias=False, device=device)
        )
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE, device=device))
        nn.init.normal_(self.visual_projection.weight, std=0.02)
        if text_projection == "none" and embedding_dim != text:
            what = f"without a text projection the embedding has the text feature's {text} dimensions"
            raise LpoError(what, f"params.yaml: reward.embedding_dim is {embedding_dim}", f"set it to {text}")
        if isinstance(self.text_projection, nn.Linear):
            nn.init.normal_(self.text_projection.weight, std=1 / math.sqrt(text))
            if text_projection != "random":
                copy_projection(self.text_projection, text_projection)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        return self.backbone.encode_prompts(prompts)

    def encode_tokens(self, ids: torch.Tensor, captions: list[str]) -> Conditioning:
        """Conditioning of stored token ids (B, L), with gradients; `captions` are for rewards with other tokens."""
        return self.backbone.encode_tokens(ids)

    def trained(self, trainable: str) -> list[nn.Parameter]:
        """What a training changes: "full" all of it, "denoiser" not the text encoders, "adapter" the LoRA instead, and
        "frozen" the projections and the scale only."""
        modules = list(self.backbone.modules().values())  # the denoiser first
        own = {"full": modules, "denoiser": modules[:1], "frozen": []}
        backbone = [self.adapter] if trainable == "adapter" else own[trainable]
        if trainable == "adapter":  # on in backward too, where checkpointing runs blocks again
            lora.activate(self.backbone.denoiser, lora.REWARD)
        trained = [self.visual_projection, self.text_projection, *backbone]
        return [*(p for module in trained for p in module.parameters()), self.logit_scale]

    def visual(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """[V_down ; V_enh] (B, W). `null` is the encoded empty prompt, B = 1."""
        with lora.switched_to(self.backbone.denoiser, lora.REWARD) if self.adapter_rank else nullcontext():
            down, mid = self.backbone.features(latents, t, conditioning)
            if self.guidance_scale != 1.0:
                _, unconditional = self.backbone.features(latents, t, null.expand(len(latents)))
                mid = unconditional + self.guidance_scale * (mid - unconditional)
        return torch.cat([*down, mid] if self.features == "multi_scale" else [mid], dim=1)

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """S for latents (B, C, h, w) at timesteps t (B,) under B prompts: (B,) float32."""
        features = self.visual(latents, t, conditioning, null)
        kind = features.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            visual = F.normalize(self.visual_projection(features.float()), dim=1)
            text = F.normalize(self.text_projection(conditioning.pooled.float()), dim=1)
            return self.logit_scale.exp() * (visual * text).sum(1)

    def heads(self) -> dict[str, torch.Tensor]:
        """Projections and scale by name, and the adapter."""
        parts_of_backbone = tuple(f"{name}." for name in self.backbone.modules())
        return {k: v for k, v in self.state_dict().items() if not k.startswith(parts_of_backbone)}

    def save(self, folder: Path) -> None:
        """Write safetensors and configurations; `load` reads them. Weights are stored in the backbone's dtype."""
        backbone = self.backbone
        config = {
            "family": backbone.name,
            "embedding_dim": self.visual_projection.out_features,
            "text_projection": isinstance(self.text_projection, nn.Linear),
            "guidance_scale": self.guidance_scale,
            "features": self.features,
            "layer": getattr(backbone, "layer", None),
            "resolution": backbone.pixels,
            "latent_space": asdict(self.latent_space) if self.latent_space else None,
            "adapter_rank": self.adapter_rank,
        }
        files = {"config.json": config}
        if self.adapter_rank:
            config["anchor"] = anchor(backbone)
        else:
            for name, part in {**backbone.modules(), **backbone.tokenizers(), "scheduler": backbone.scheduler}.items():
                part.save_pretrained(folder / name)
            (folder / "vae").mkdir()
            files["vae/config.json"] = dict(backbone.codec.config)
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
        save_file({k: v.contiguous() for k, v in self.heads().items()}, folder / HEADS)


def load(
    folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, family: Family | None = None,
    shard: bool = False,
) -> LatentRewardModel:  # fmt: skip
    """Load what `save` wrote, frozen. An adapter is attached to `family`, beside the adapters that are there.

    shard: leave each of several processes its part of the backbone's denoiser.

    Raises:
        LpoError: where files are missing or don't fit, or an adapter is not one of `family`.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        heads = load_file(folder / HEADS)  # "cuda" would be the first GPU here, whichever this process has
        space, rank = config["latent_space"], config.get("adapter_rank")
        layer = {"layer": config["layer"]} if config["layer"] else {}
        if rank:
            backbone = _carrier(family, config["anchor"], folder)
            backbone = replace(backbone, **layer)
        else:
            load_backbone = family_class(config["family"]).load
            backbone = load_backbone(
                str(folder), device, dtype, True, resolution=config["resolution"], shard=shard, **layer
            )
        model = LatentRewardModel(
            backbone, config["embedding_dim"], config["guidance_scale"], config["features"],
            "random" if config["text_projection"] else "none", space_of(space) if space else None, rank,
        )  # fmt: skip
        load_heads(model, heads)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise LpoError(f"no latent reward model here: {error}", str(folder), "run `lpo reward`") from error
    return model.requires_grad_(False).eval()


def anchor(backbone: Family) -> list[float]:
    """Some numbers of a denoiser's weights, by which an adapter knows its own."""
    return [float(x) for x in next(iter(backbone.denoiser.parameters())).flatten()[:16].float()]


def _carrier(family: Family | None, expected: list[float], folder: Path) -> Family:
    """The model that an adapter is attached to. Raises LpoError for another than it was trained on."""
    remedy = "load it with the base model that it was trained on, or train the reward on this one"
    if family is None:
        raise LpoError("this reward is an adapter of a base model, and no model is given", str(folder), remedy)
    found, wanted = torch.tensor(anchor(family)), torch.tensor(expected)
    if found.shape != wanted.shape or float((found - wanted).norm()) > 0.02 * float(wanted.norm()):
        raise LpoError("this reward is an adapter of another base model", str(folder), remedy)
    if lora.REWARD in getattr(family.denoiser, "peft_config", {}):
        what = "the model carries the adapter of another reward already"
        raise LpoError(what, str(folder), "name one reward at most that is an adapter of the tuned model")
    return family


def load_heads(model: LatentRewardModel, heads: dict[str, torch.Tensor]) -> None:
    """Projections and scale. Raises RuntimeError unless names and shapes are the model's."""
    missing = set(model.heads()) ^ set(heads)
    if missing:
        raise RuntimeError(f"projections don't fit: {', '.join(sorted(missing))}")
    model.load_state_dict(heads, strict=False)


@torch.no_grad()
def probe_widths(backbone: Family, features: str) -> tuple[int, int]:
    """Widths of the visual and the text feature, as one forward has them (on the meta device too)."""
    device = backbone.device
    conditioning = backbone.encode_tokens(torch.zeros(1, backbone.token_columns, dtype=torch.long, device=device))
    zero = torch.zeros(1, *backbone.latent_shape, device=device, dtype=backbone.dtype)
    down, mid = backbone.features(zero, torch.zeros(1, device=device, dtype=torch.long), conditioning)
    visual = [*down, mid] if features == "multi_scale" else [mid]
    return sum(part.shape[1] for part in visual), conditioning.pooled.shape[1]


def copy_projection(projection: nn.Linear, source: str) -> None:
    """Start from a CLIP's text projection (the published LRM-1.5: openai/clip-vit-large-patch14)."""
    weight = projection.weight
    clip = parts.module(CLIPTextModelWithProjection, source, "", weight.dtype, weight.device)
    if clip.text_projection.weight.shape != weight.shape:
        raise LpoError(
            f"its text projection is {tuple(clip.text_projection.weight.shape)}, the reward's {tuple(weight.shape)}",
            f"params.yaml: reward.text_projection: {source}",
            "set reward.embedding_dim to the first number, or take another CLIP",
        )
    weight.data.copy_(clip.text_projection.weight)
