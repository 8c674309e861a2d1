"""lrm: data/latents, data/filtered -> data/reward, the latent reward model, and its accuracy on held-out pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lpo.config import Params
from lpo.data.latents import Latents
from lpo.evaluate.statistics import share
from lpo.families import device_of, latent_space_of, load_family
from lpo.families.latent_space import check_same
from lpo.files import atomic_folder, file_hash, folder_hash, write_json, write_text
from lpo.report.reward_card import reward_card
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.lrm_published import load_reward
from lpo.tracking import Tracker
from lpo.train import checkpoint, distributed
from lpo.train.reward import BINS, RewardTrainer, load_pairs

KEPT = Path("data/filtered/kept.parquet")


def run(params: Params) -> None:
    """Train on the kept train pairs, choose by validation pairs, measure on test pairs."""
    with distributed.joined(device_of(params.model)):
        train(params)


def train(params: Params) -> None:
    """What each process does; the first one writes."""
    config = params.reward
    latents, kept = Latents(Path("data/latents")), pd.read_parquet(KEPT)
    identity = {
        "reward": asdict(config), "model": asdict(params.model), "seed": params.seed, "pairs": file_hash(KEPT),
        "base": folder_hash(params.model.path), "latents": folder_hash("data/latents"),
    }  # fmt: skip
    folder = checkpoint.folder("reward", identity)
    splits = {name: kept[kept["split"] == name].reset_index(drop=True) for name in ("train", "validation", "test")}
    splits["validation"] = drawn(splits["validation"], config.validation_pairs, params.seed)
    pairs = {name: load_pairs(frame, latents, config.example_weights) for name, frame in splits.items()}
    model = reward_model(params, latents)
    trainer = RewardTrainer(model, latents, config, params.seed)
    if config.pretrained is None:
        with Tracker("reward", params) if distributed.is_first() else nullcontext() as tracker:
            trainer.run(pairs["train"], pairs["validation"], folder, tracker)
    else:
        trainer.best_accuracy = float(np.nanmean(trainer.accuracy(pairs["validation"])))
    apart = trainer.accuracy(pairs["test"])
    together = trainer.ensemble_accuracy(pairs["test"], config.ensemble_timesteps, config.ensemble_draws)
    if not distributed.is_first():
        return
    metrics = measure(apart, splits["test"], params.seed)
    metrics["accuracy"]["ensemble"] = interval_of(together, splits["test"]["caption"].to_numpy(), params.seed)
    steps = trainer.history[-1]["step"] if trainer.history else 0
    metrics |= {"steps": steps, "validation": round(trainer.best_accuracy, 5)}
    with atomic_folder("data/reward") as out:
        model.save(out)
        write_json(out / "history.json", trainer.history)
        write_text(out / "README.md", reward_card(asdict(params), metrics))
    write_json("plots/reward_accuracy.json", metrics["accuracy"]["by_timestep"])
    write_json("metrics/reward.json", metrics)


def drawn(pairs: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """`count` of the validation pairs, or all: each is scored at ten timesteps, every time."""
    return pairs.sample(min(count, len(pairs)), random_state=seed)


def reward_model(params: Params, latents: Latents) -> LatentRewardModel:
    """The reward to be trained, or the one that `reward.pretrained` names. Raises LpoError for another latent space."""
    config, base = params.reward, params.model
    if config.base is not None:
        base = replace(base, path=config.base, vae=None, denoiser=None)
    if config.pretrained is not None:
        model = load_reward(config.pretrained, replace(base, shard=False))  # it is saved whole
        check_same(model.latent_space, latents.space, config.pretrained)
        return model
    space = latent_space_of(base)
    check_same(space, latents.space, base.path)
    backbone = load_family(base, reward=True, layer=config.layer, dtype=torch.float32)
    torch.manual_seed(params.seed)
    return LatentRewardModel(
        backbone, config.embedding_dim, config.guidance_scale, config.features, config.text_projection, space,
        config.adapter_rank if config.trainable == "adapter" else None,
    )  # fmt: skip


def measure(right: np.ndarray, frame: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Accuracy with intervals from (bins, pairs) of right, wrong and tie (NaN); bootstrap over prompts."""
    captions = frame["caption"].to_numpy()
    width = 1000 // BINS

    decided = ~np.isnan(right[0])

    def interval(values: np.ndarray, rows: np.ndarray) -> dict[str, float]:
        return interval_of(values[rows], captions[rows], seed)

    def early(rows: np.ndarray) -> dict[str, float]:
        return interval(right[: BINS // 2].mean(0), rows)  # over t < 500, where previews of a picture exist

    everything = np.ones(len(frame), bool)
    accuracy: dict[str, Any] = {
        "mean": round(float(np.nanmean(right)), 5),
        "below_500": round(float(np.nanmean(right[: BINS // 2])), 5),
        "by_timestep": [
            {"t_low": k * width, "t_high": (k + 1) * width, **interval(right[k], everything)} for k in range(BINS)
        ],
    }
    for column in ("category", "difference"):
        if column in frame:
            names = sorted(frame[column].dropna().unique())
            rows = {name: (frame[column] == name).to_numpy() for name in names}
            accuracy[f"by_{column}"] = {name: early(r) for name, r in rows.items() if (r & decided).any()}
    return {"accuracy": accuracy, "test_pairs": len(frame)}


def interval_of(right: np.ndarray, captions: np.ndarray, seed: int) -> dict[str, float]:
    """Share of right (1) among right and wrong (0), ties (NaN) left out, with its interval and number of pairs."""
    decided = ~np.isnan(right)
    found = share(right[decided], captions[decided], seed=seed)
    return {k: round(float(found[k]), 5) for k in ("value", "low", "high")} | {"pairs": int(decided.sum())}
