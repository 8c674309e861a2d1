"""From the pipeline's files to what the trainers take, for stages and studies alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.config import Model, RewardModel, Spm, Tune
from lpo.data.latents import Latents
from lpo.errors import LpoError
from lpo.families.family import Family
from lpo.files import file_hash, folder_hash
from lpo.paths import KEPT, LATENTS
from lpo.rewards.load import load_reward
from lpo.train.offline import stored_pairs
from lpo.train.policy import PolicyTrainer
from lpo.train.reward import Pairs, load_pairs


@dataclass(frozen=True)
class RewardData:
    """The kept pairs of each split, as a table and as rows into the stored latents."""

    latents: Latents
    tables: dict[str, pd.DataFrame]
    pairs: dict[str, Pairs]


def reward_data(config: RewardModel | Spm, seed: int) -> RewardData:
    """What a step reward is trained on. Of the validation pairs, `config.validation_pairs` are drawn."""
    latents, kept = Latents(LATENTS), pd.read_parquet(KEPT)
    tables = {name: kept[kept["split"] == name].reset_index(drop=True) for name in ("train", "validation", "test")}
    validation = tables["validation"]
    tables["validation"] = validation.sample(min(config.validation_pairs, len(validation)), random_state=seed)
    pairs = {name: load_pairs(table, latents, config.example_weights) for name, table in tables.items()}
    return RewardData(latents, tables, pairs)


def reward_identity(model: Model) -> dict[str, Any]:
    """Hashes of what a reward is trained on, for the key of its checkpoints."""
    return {"base": folder_hash(model.path), "latents": folder_hash(LATENTS), "pairs": file_hash(KEPT)}


def policy_trainer(family: Family, config: Tune, seed: int, shard: bool) -> PolicyTrainer:
    """The trainer of `config.method` with the reward and the pairs that it needs.

    shard: split the frozen weights of a latent reward among the processes.

    Raises:
        LpoError: if the method is lpo and the reward scores pictures.
    """
    reward = load_reward(Path(config.reward), family, shard)
    if config.method == "lpo" and reward.space == "pixel":
        raise LpoError(
            "lpo scores noisy latents, and this reward scores pictures",
            f"params.yaml: tune.reward: {config.reward}",
            "set tune.method to spo, or tune.reward to data/reward",
        )
    pairs = None
    if config.method == "diffusion_dpo":  # the only method that learns from stored pairs
        pairs = stored_pairs(pd.read_parquet(KEPT).query("split == 'train'"), Latents(LATENTS))
    return PolicyTrainer(family, reward, config, seed, pairs)
