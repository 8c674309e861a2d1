"""From the pipeline's files to the policy's trainer."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from lpo.config import JudgeModels, ScoreModels, Tune
from lpo.data.latents import Latents
from lpo.errors import LpoError
from lpo.families.family import Family
from lpo.paths import KEPT, LATENTS
from lpo.preference.mpcf import SCORES
from lpo.rewards import pixel
from lpo.rewards.load import load_reward
from lpo.rewards.pixel import ScorerModels
from lpo.rewards.protocol import Reward
from lpo.rewards.several import SeveralRewards
from lpo.scorers.judges import Scorer, load_judge
from lpo.train.policy.methods import METHODS
from lpo.train.policy.offline import stored_pairs, stored_votes
from lpo.train.policy.trainer import PolicyTrainer


def blind_judge(config: Tune, models: JudgeModels, scorers: ScoreModels, device: torch.device) -> Scorer | None:
    """The published judge that `tune.blind` names; None for a scorer that validation has anyway."""
    if config.blind is None or config.blind in SCORES:
        return None
    return load_judge(config.blind, models, scorers, {}, device)


def reward_of(config: Tune, family: Family, shard: bool, scorers: ScorerModels | None) -> Reward:
    """What `config.rewards` names, or where it is empty the reward of `config.reward`."""
    if not config.rewards:
        return load_reward(Path(config.reward), family, shard)
    rewards: dict[str, Reward] = {}
    for name in config.rewards:
        if name in pixel.PICTURE_SCORERS and scorers is not None:
            rewards[name] = pixel.load(name, scorers, family, config.guidance_scale)
        else:
            rewards[name] = load_reward(Path(name), family, shard)
    return SeveralRewards(rewards, config.rewards)


def policy_trainer(
    family: Family, config: Tune, seed: int, shard: bool, scorers: ScorerModels | None = None
) -> PolicyTrainer:
    """The trainer of `config.method` with the rewards and the pairs that it needs.

    shard: split the frozen weights of a latent reward among the processes. scorers: those of pictures, by which
    `config.rewards` may name a reward.

    Raises:
        LpoError: if lpo is given a reward of pictures, or a method without guidance is to be guided, or a method of
            soft labels has pairs without score gaps.
    """
    reward, method = reward_of(config, family, shard, scorers), METHODS[config.method]
    if config.method == "lpo" and reward.space == "pixel":
        raise LpoError(
            f"{config.method} scores noisy latents, and this reward scores pictures",
            f"params.yaml: tune.reward: {config.reward}, tune.rewards: {', '.join(config.rewards)}",
            "set tune.method to spo, or tune.reward to data/reward",
        )
    if method.finished and config.guidance_scale != 1:
        what = f"{config.method} draws and learns without guidance; the guidance scale is {config.guidance_scale:g}"
        raise LpoError(what, "params.yaml: tune.guidance_scale", "set it to 1, or take another method")
    stored = None
    if method.stored:
        frame, latents = pd.read_parquet(KEPT).query("split == 'train'"), Latents(LATENTS)
        stored = stored_votes(frame, latents) if method.batch == "votes" else (
            stored_pairs(frame, latents, soft=method.batch == "soft pairs")
        )  # fmt: skip
    return PolicyTrainer(family, reward, config, seed, stored)
