"""From the pipeline's files to the policy's trainer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lpo.config import Tune
from lpo.data.latents import Latents
from lpo.errors import LpoError
from lpo.families.family import Family
from lpo.paths import KEPT, LATENTS
from lpo.rewards.load import load_reward
from lpo.train.policy.offline import stored_pairs
from lpo.train.policy.trainer import PolicyTrainer


def policy_trainer(family: Family, config: Tune, seed: int, shard: bool) -> PolicyTrainer:
    """The trainer of `config.method` with the reward and the pairs that it needs.

    shard: split the frozen weights of a latent reward among the processes.

    Raises:
        LpoError: if the method is lpo or nft and the reward scores pictures, or nft is to be guided.
    """
    reward = load_reward(Path(config.reward), family, shard)
    if config.method in ("lpo", "nft") and reward.space == "pixel":
        raise LpoError(
            f"{config.method} scores noisy latents, and this reward scores pictures",
            f"params.yaml: tune.reward: {config.reward}",
            "set tune.method to spo, or tune.reward to data/reward",
        )
    if config.method == "nft" and config.guidance_scale != 1:
        what = f"nft draws and learns without guidance, and the guidance scale is {config.guidance_scale:g}"
        raise LpoError(what, "params.yaml: tune.guidance_scale", "set it to 1, or take another method")
    pairs = None
    if config.method == "diffusion_dpo":  # the only method that learns from stored pairs
        pairs = stored_pairs(pd.read_parquet(KEPT).query("split == 'train'"), Latents(LATENTS))
    return PolicyTrainer(family, reward, config, seed, pairs)
