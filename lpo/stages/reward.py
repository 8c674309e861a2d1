"""reward: data/latents, data/filtered -> data/reward, the latent reward model, and its accuracy on held-out pairs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import torch

from lpo import paths, resume
from lpo.config import Params
from lpo.data.latents import Latents
from lpo.families import device_of, latent_space_of, load_family
from lpo.families.latent_space import check_same
from lpo.files import atomic_folder, write_json, write_text
from lpo.paths import REWARD
from lpo.report.cards import reward_card
from lpo.rewards.dina import DinaReward
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.lrm_published import load_reward
from lpo.tracking import Tracker
from lpo.train.common import distributed
from lpo.train.reward.accuracy import accuracy_metrics, share_with_interval
from lpo.train.reward.data import reward_data, reward_identity
from lpo.train.reward.trainer import RewardTrainer


def run(params: Params) -> None:
    """Train on the kept train pairs, choose by validation pairs, measure on test pairs."""
    with distributed.joined(device_of(params.model)):
        train(params)


def train(params: Params) -> None:
    """The work of one process; the first one writes."""
    if params.reward.seed is not None:
        params = replace(params, seed=params.reward.seed)
    config, data = params.reward, reward_data(params.reward, params.seed)
    identity = {"reward": asdict(config), "model": asdict(params.model), "seed": params.seed}
    folder = resume.folder("reward", identity | reward_identity(params.model))
    distributed.check_same("parameters, inputs or code", folder.name)
    model = reward_model(params, data.latents)
    trainer = RewardTrainer(model, data.latents, config, params.seed)
    if config.pretrained is None:
        tracked = Tracker("reward", params.tracking, asdict(params), folder)
        with tracked if distributed.is_first() else nullcontext() as tracker:
            trainer.run(data.pairs["train"], data.pairs["validation"], folder, tracker)
    else:
        trainer.best_accuracy = float(np.nanmean(trainer.accuracy(data.pairs["validation"])))
    test, pairs = data.tables["test"], data.pairs["test"]
    right = trainer.accuracy(pairs)
    by_ensemble = trainer.ensemble_accuracy(pairs, config.ensemble_timesteps, config.ensemble_draws)
    if not distributed.is_first():
        return
    metrics = accuracy_metrics(right, test, params.seed)
    metrics["accuracy"]["ensemble"] = share_with_interval(by_ensemble, test["caption"].to_numpy(), params.seed)
    steps = trainer.history[-1]["step"] if trainer.history else 0
    metrics |= {"steps": steps, "validation": round(trainer.best_accuracy, 5)} | trainer.scale.figures
    with atomic_folder(REWARD) as out:
        model.save(out)
        write_json(out / "history.json", trainer.history)
        write_text(out / "README.md", reward_card(asdict(params), metrics))
    write_json(paths.plot("reward_accuracy"), metrics["accuracy"]["by_timestep"])
    write_json(paths.metrics("reward"), metrics)


def reward_model(params: Params, latents: Latents) -> LatentRewardModel | DinaReward:
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
    dtype = None if config.trainable == "adapter" else torch.float32  # of what does not train: as tune will have it
    backbone = load_family(base, reward=True, layer=config.layer, dtype=dtype)
    torch.manual_seed(params.seed)
    return LatentRewardModel(
        backbone, config.embedding_dim, config.guidance_scale, config.features, config.text_projection, space,
        config.adapter_rank if config.trainable == "adapter" else None,
    )  # fmt: skip
