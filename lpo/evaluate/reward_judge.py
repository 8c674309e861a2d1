"""The latent reward model as a judge of finished pictures: what the tuning optimised, so it is no evidence."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lpo.config import Model
from lpo.errors import LpoError
from lpo.families import latent_space_of, load_family
from lpo.families.family import Family
from lpo.families.latent_space import check_same, space_of
from lpo.rewards import lrm
from lpo.rewards.lrm import LatentRewardModel
from lpo.sampling.generate import to_tensor

CLEAN = 1  # the timestep at which the reward reads a finished picture

log = logging.getLogger(__name__)


class RewardJudge:
    """The reward's own scores of finished pictures. They show reward hacking and are never a result."""

    def __init__(self, family: Family, reward: LatentRewardModel) -> None:
        self.family, self.reward = family, reward

    @torch.no_grad()
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) of pictures of the size that the family draws."""
        pixels = np.stack([np.array(picture.convert("RGB")) for picture in pictures])
        latents = self.family.scale(self.family.encode_images(to_tensor(pixels)).chunk(2, dim=1)[0])
        steps = torch.full((len(latents),), CLEAN, device=self.family.device)
        null = self.reward.encode_prompts([""])
        return self.reward.score(latents, steps, self.reward.encode_prompts(list(prompts)), null).cpu()


def load_reward_judge(folder: Path, model: Model) -> RewardJudge:
    """Raises LpoError where the folder holds no latent reward model."""
    family = load_family(model)
    return RewardJudge(family, lrm.load(folder, family.device, family.dtype, family))


def reward_of(folder: Path, model: Model) -> Path | None:
    """The folder, if it holds a reward that reads this model's latents; else None, and the log says why.

    A reward is optional: a model that others published is evaluated without one.
    """
    file = folder / "config.json"
    if not file.exists():
        return None
    space = json.loads(file.read_text()).get("latent_space")
    try:
        check_same(space_of(space) if space else None, latent_space_of(model), str(folder))
    except LpoError as error:
        log.warning("the results have no column lrm: %s: %s", folder, error.what)
        return None
    return folder
