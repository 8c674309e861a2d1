"""The reward in a folder, whichever kind it is."""

from __future__ import annotations

import json
from pathlib import Path

from lpo.families.family import Family
from lpo.families.latent_space import check_same
from lpo.rewards import dina, lrm, spm
from lpo.rewards.dina import DinaReward
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import StepPreferenceModel


def load_reward(
    folder: Path, family: Family, shard: bool = False
) -> LatentRewardModel | StepPreferenceModel | DinaReward:
    """What `lpo reward` or `lpo spm` wrote, or DiNa-LRM, frozen. A pixel reward predicts and decodes with `family`.

    folder: of DiNa-LRM also a hub id.

    shard: leave each of several processes its part of a latent reward's denoiser.

    Raises:
        LpoError: where the folder holds no reward, or one that reads other latents than `family` makes.
    """
    if dina.config_of(str(folder)) is not None:
        return dina.load(str(folder), family)
    file = folder / "config.json"
    if file.exists() and json.loads(file.read_text()).get("kind") == "spm":
        return spm.load(folder, family)
    reward = lrm.load(folder, family.device, family.dtype, family, shard)
    check_same(reward.latent_space, family.codec.space(), str(folder))
    return reward
