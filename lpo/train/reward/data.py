"""From the pipeline's files to what the trainer of a step reward takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lpo.config import Model, RewardModel, Spm
from lpo.data.latents import Latents
from lpo.files import file_hash, folder_hash
from lpo.paths import KEPT, LATENTS
from lpo.train.reward.pairs import Pairs, load_pairs


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
