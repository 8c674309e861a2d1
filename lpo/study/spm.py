"""spm: data/latents, data/filtered, data/base, a CLIP -> data/spm, SPO's reward, and its accuracy on held-out pairs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from lpo.config import Params
from lpo.data.latents import Latents
from lpo.families import load_family
from lpo.files import atomic_folder, file_hash, folder_hash, write_json
from lpo.rewards.spm import start
from lpo.stages.reward import KEPT, drawn, measure
from lpo.tracking import Tracker
from lpo.train import checkpoint
from lpo.train.reward import RewardTrainer, load_pairs


def run(params: Params) -> None:
    """As the stage reward: train on the kept train pairs, choose by validation pairs, measure on test pairs."""
    config = params.spm
    latents, kept = Latents(Path("data/latents")), pd.read_parquet(KEPT)
    clip = folder_hash(config.clip) if Path(config.clip).exists() else config.clip
    identity = {
        "spm": asdict(config), "model": asdict(params.model), "seed": params.seed, "pairs": file_hash(KEPT),
        "base": folder_hash(params.model.path), "latents": folder_hash("data/latents"), "clip": clip,
    }  # fmt: skip
    folder = checkpoint.folder("spm", identity)
    splits = {name: kept[kept["split"] == name].reset_index(drop=True) for name in ("train", "validation", "test")}
    splits["validation"] = drawn(splits["validation"], config.validation_pairs, params.seed)
    pairs = {name: load_pairs(frame, latents, config.example_weights) for name, frame in splits.items()}
    torch.manual_seed(params.seed)
    model = start(config.clip, load_family(params.model), config.guidance_scale)
    trainer = RewardTrainer(model, latents, config, params.seed)
    with Tracker("spm", params) as tracker:
        trainer.run(pairs["train"], pairs["validation"], folder, tracker)
    metrics = measure(trainer.accuracy(pairs["test"]), splits["test"], params.seed)
    metrics |= {"steps": trainer.history[-1]["step"], "validation": round(trainer.best_accuracy, 5)}
    with atomic_folder("data/spm") as out:
        model.save(out)
        write_json(out / "history.json", trainer.history)
    write_json("studies/spm.json", metrics)
