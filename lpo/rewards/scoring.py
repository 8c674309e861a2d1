"""A trained reward model as a library object: images or latents and prompts in, scores out.

    from lpo import Reward
    reward = Reward.load("data/reward")
    scores = reward.score(images, "a cat left of a taxi")     # one number an image, higher is better

A score is the mean of the reward model over timesteps and draws of noise:

    S(p, x_0) = mean over t and eps of S(p, add_noise(x_0, eps, t), t),  eps ~ N(0, I)

as DiNa-LRM scores finished images (arXiv 2602.11146). All images get the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from PIL import Image

from lpo.errors import LpoError
from lpo.families import DTYPES, FAMILIES, family_class, parts, settle
from lpo.families.conditioning import Conditioning
from lpo.families.latent_space import Codec, check_same, load_codec
from lpo.images import to_tensor
from lpo.random import generator
from lpo.rewards import dina, lrm
from lpo.rewards.ensemble import TIMESTEPS, ensemble_score


@dataclass(frozen=True)
class Reward:
    """model: the latent reward model. codec: the VAE of its latents, which encodes images."""

    model: lrm.LatentRewardModel | dina.DinaReward
    codec: Codec

    comparable = (
        "Scores compare within one reward model and one prompt. The model expects people to prefer a over b with "
        "probability sigmoid(score(a) - score(b)). Scores of different prompts or reward models do not compare."
    )

    @classmethod
    def load(
        cls, path: str | Path, base: str | Path | None = None, device: str = "auto", dtype: str = "fp32"
    ) -> Reward:
        """Load what `lpo reward` wrote, or DiNa-LRM.

        Args:
            path: the reward's folder, such as data/reward; of DiNa-LRM also a hub id.
            base: the model whose VAE made its latents, a folder or a hub id; None: the one that its model card, or
                DiNa-LRM's config.json, names.
            device: auto, cpu, cuda or cuda:N. dtype: fp32, bf16 or fp16.

        Raises:
            LpoError: if there is no latent reward model, or the base has another VAE.
        """
        folder = Path(path)
        if dtype not in DTYPES:
            raise LpoError(f"there is no dtype {dtype!r}", "Reward.load", f"one of {', '.join(DTYPES)}")
        published = dina.config_of(str(path))
        config = {} if published else _config(folder)
        where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        settle(where)
        if published:
            known = published["model"].get("backbone_model_id", dina.BASE)
            family = family_class("sd3").load(str(base or known), where, DTYPES[dtype], False)
            return cls(dina.load(str(path), family), family.codec)
        source = str(base) if base is not None else _base_of(folder)
        if config.get("adapter_rank"):
            family = family_class(config["family"]).load(source, where, DTYPES[dtype], False)
            model, codec = lrm.load(folder, where, DTYPES[dtype], family), family.codec
        else:
            codec = load_codec(*parts.either(None, source, "vae"), DTYPES[dtype], where)
            model = lrm.load(folder, where, DTYPES[dtype])
        check_same(model.latent_space, codec.space(), str(folder))
        return cls(model, codec)

    @torch.no_grad()
    def score(
        self, images: Sequence[Image.Image] | torch.Tensor, prompts: str | Sequence[str] | Conditioning, draws: int = 1,
        seed: int = 0,
    ) -> torch.Tensor:  # fmt: skip
        """(N,) float32 scores, higher is better; see `comparable`.

        Args:
            images: N PIL images of any size, or clean latents (N, C, h, w) of unit scale as a denoiser reads them.
            prompts: one for all images, or N, or N that are encoded already.
            draws: of noise at each timestep. seed: of the noise.

        Raises:
            LpoError: if there are not as many prompts as images.
        """
        latents = images if isinstance(images, torch.Tensor) else self.encode(images)
        conditioning, null = self._encode_prompts(prompts, len(latents)), self.model.encode_prompts([""])
        latents = latents.to(self.model.backbone.device, self.model.backbone.dtype)
        transition, noise = self.model.backbone.transition(1.0), generator(seed, "score")
        return ensemble_score(self.model, transition, latents, TIMESTEPS, draws, conditioning, null, noise)

    @torch.no_grad()
    def score_at(
        self, latents: torch.Tensor, timesteps: torch.Tensor, prompts: str | Sequence[str] | Conditioning
    ) -> torch.Tensor:
        """(N,) float32 scores of noisy latents (N, C, h, w) at timesteps (N,), as LPO ranks candidates."""
        conditioning, null = self._encode_prompts(prompts, len(latents)), self.model.encode_prompts([""])
        backbone = self.model.backbone
        latents = latents.to(backbone.device, backbone.dtype)
        return self.model.score(latents, timesteps.to(backbone.device), conditioning, null)

    def _encode_prompts(self, prompts: str | Sequence[str] | Conditioning, count: int) -> Conditioning:
        texts = [prompts] * count if isinstance(prompts, str) else prompts
        if len(texts) != count:
            raise LpoError(f"{len(texts)} prompts for {count} images", "Reward.score", "one prompt, or one each")
        return texts if isinstance(texts, Conditioning) else self.model.encode_prompts(list(texts))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Clean latents (N, C, h, w) of unit scale: the VAE's mean of each image, resized to the model's square."""
        side = self.model.backbone.pixels
        pixels = [np.array(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)) for image in images]
        batch = to_tensor(np.stack(pixels))
        return self.codec.scale(self.codec.encode(batch).chunk(2, dim=1)[0])


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LpoError("no reward model here", str(folder), "run `dvc repro reward`, or `dvc pull` it") from error
    if config.get("family") not in FAMILIES:
        what = "this is not a latent reward model" + (" but SPO's" if config.get("kind") == "spm" else "")
        raise LpoError(what, str(file), "name the folder of a latent reward model, such as data/reward")
    return config


def _base_of(folder: Path) -> str:
    """The base model that the reward's model card names."""
    card = folder / "README.md"
    named = ModelCard.load(card).data.to_dict().get("base_model") if card.exists() else None
    if not isinstance(named, str):
        raise LpoError("its model card names no base model", str(card), 'Reward.load(path, base="a folder or hub id")')
    return named
