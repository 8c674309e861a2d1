"""spm: data/latents, data/filtered, data/base, a CLIP -> data/spm, SPO's reward, and its accuracy on held-out pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from lpo import resume
from lpo.config import Params
from lpo.families import device_of, load_family
from lpo.files import atomic_folder, folder_hash, write_json
from lpo.paths import SPM
from lpo.rewards.spm import published, start
from lpo.tracking import Tracker
from lpo.train.common import distributed
from lpo.train.reward.accuracy import accuracy_metrics
from lpo.train.reward.data import reward_data, reward_identity
from lpo.train.reward.trainer import RewardTrainer


def run(params: Params) -> None:
    """As the stage reward: train on the kept train pairs, choose by validation pairs, measure on test pairs.

    With `spm.pretrained` nothing is trained.
    """
    with distributed.joined(device_of(params.model)):
        train(params)


def train(params: Params) -> None:
    """The work of one process; the first one writes."""
    if params.spm.seed is not None:
        params = replace(params, seed=params.spm.seed)
    config, data = params.spm, reward_data(params.spm, params.seed)
    clip = folder_hash(config.clip) if Path(config.clip).exists() else config.clip
    identity = {"spm": asdict(config), "model": asdict(params.model), "seed": params.seed, "clip": clip}
    folder = resume.folder("spm", identity | reward_identity(params.model))
    distributed.check_same("parameters, inputs or code", folder.name)
    torch.manual_seed(params.seed)
    family = load_family(params.model)
    if config.pretrained is None:
        model = start(config.clip, family, config.guidance_scale, config.tokenizer)
    else:
        model = published(config.pretrained, config.clip, family, config.guidance_scale, config.tokenizer)
    trainer = RewardTrainer(model, data.latents, config, params.seed)
    if config.pretrained is None:
        tracked = Tracker("spm", params.tracking, asdict(params), folder)
        with tracked if distributed.is_first() else nullcontext() as tracker:
            trainer.run(data.pairs["train"], data.pairs["validation"], folder, tracker)
    else:
        trainer.best_accuracy = float(np.nanmean(trainer.accuracy(data.pairs["validation"])))
    right = trainer.accuracy(data.pairs["test"])
    if not distributed.is_first():
        return
    metrics = accuracy_metrics(right, data.tables["test"], params.seed)
    steps = trainer.history[-1]["step"] if trainer.history else 0
    metrics |= {"steps": steps, "validation": round(trainer.best_accuracy, 5)}
    with atomic_folder(SPM) as out:
        model.save(out)
        write_json(out / "history.json", trainer.history)
    write_json("studies/spm.json", metrics)
