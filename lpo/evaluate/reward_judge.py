"""The latent reward model as a judge of finished pictures: what the tuning optimised, so it is no evidence."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import codec_of, latent_space_of, load_family
from lpo.families.latent_space import Codec, check_same, space_of
from lpo.images import to_tensor
from lpo.rewards import dina, lrm
from lpo.rewards.dina import DinaReward
from lpo.rewards.ensemble import TIMESTEPS, ensemble_score
from lpo.rewards.lrm import LatentRewardModel

CLEAN = 1  # the timestep at which the reward reads a finished picture; DiNa-LRM reads it at TIMESTEPS together

log = logging.getLogger(__name__)


class RewardJudge:
    """The reward's own scores of finished pictures. They show reward hacking and are never a result."""

    def __init__(self, codec: Codec, reward: LatentRewardModel | DinaReward) -> None:
        self.codec, self.reward = codec, reward

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) of N pictures of one size."""
        pixels = np.stack([np.array(picture.convert("RGB")) for picture in pictures])
        latents = self.codec.scale(self.codec.encode(to_tensor(pixels)).chunk(2, dim=1)[0])
        steps = torch.full((len(latents),), CLEAN, device=self.codec.device)
        null, text = self.reward.encode_prompts([""]), self.reward.encode_prompts(list(prompts))
        if isinstance(self.reward, DinaReward):
            transition = self.reward.backbone.transition(1.0).to(latents.device)
            noise = torch.Generator().manual_seed(0)  # the same for every batch of images
            latents = latents.to(self.reward.backbone.dtype)
            return ensemble_score(self.reward, transition, latents, TIMESTEPS, 1, text, null, noise).cpu()
        return self.reward.score(latents, steps, text, null).cpu()


def load_reward_judge(folder: Path, model: Model) -> RewardJudge:
    """The reward with the VAE of `model`. A reward that is an adapter, as DiNa-LRM is, needs the whole model.

    Raises:
        LpoError: if the folder holds no latent reward model, or an adapter of another model.
    """
    published = dina.config_of(str(folder)) is not None
    family = load_family(model) if published or config_of(folder).get("adapter_rank") else None
    codec = family.codec if family else codec_of(model)
    if published and family:
        return RewardJudge(codec, dina.load(str(folder), family))
    return RewardJudge(codec, lrm.load(folder, codec.device, codec.dtype, family))


def reward_of(folder: Path, model: Model) -> Path | None:
    """The folder, if it holds a reward that reads this model's latents; else None, and the log says why.

    A reward is optional: a model that others published is evaluated without one.
    """
    if not (folder / "config.json").exists():
        return None
    if dina.config_of(str(folder)) is not None:
        return folder if model.family == "sd3" else None
    space = config_of(folder).get("latent_space")
    try:
        check_same(space_of(space) if space else None, latent_space_of(model), str(folder))
    except LpoError as error:
        log.warning("the results have no column lrm: %s: %s", folder, error.what)
        return None
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """config.json of a reward. Raises LpoError where it is damaged."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LpoError(f"no latent reward model here: {error}", str(folder), "dvc repro reward") from error
