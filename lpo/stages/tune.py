"""tune: data/base, the reward, data/prompts.parquet -> data/tuned, a LoRA that `pipe.load_lora_weights` reads."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from dataclasses import asdict

import pandas as pd

from lpo import paths, resume
from lpo.config import Params, Tune
from lpo.errors import NotFinite
from lpo.families import device_of, load_family
from lpo.files import atomic_folder, file_hash, folder_hash, write_json, write_text
from lpo.paths import KEPT, LATENTS, PROMPTS, TUNED
from lpo.report.cards import model_card
from lpo.rewards.pixel import PICTURE_SCORERS, ScorerModels
from lpo.tracking import Tracker
from lpo.train.common import distributed
from lpo.train.policy.load import policy_trainer
from lpo.train.policy.methods import METHODS
from lpo.train.policy.trainer import BASE_VALUE, PolicyTrainer
from lpo.train.policy.validation import scorers_of_validation, validation

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Fine-tune the adapter; the best one by the scorers on validation prompts is written.

    Raises:
        NotFinite: where the training did; the best adapter so far is written all the same.
    """
    with distributed.joined(device_of(params.model)):
        tune(params)


def tune(params: Params) -> None:
    """What each process does; the first one writes."""
    config, scorers = params.tune, scorers_of_validation(params)
    prompts = pd.read_parquet(PROMPTS)
    identity = {
        "tune": asdict(config), "model": asdict(params.model), "seed": params.seed, "prompts": file_hash(PROMPTS),
        "base": folder_hash(params.model.path), "reward": folder_hash(config.reward),
        "scorers": asdict(scorers) if scorers.scorers == "published" else folder_hash(scorers.scorers),
    }  # fmt: skip
    if config.rewards:
        identity |= {"rewards": {name: folder_hash(name) for name in config.rewards}}
    if set(config.rewards) & set(PICTURE_SCORERS):
        own = folder_hash(params.score.scorers), asdict(params.score), asdict(params.evaluate.judge_models)
        identity |= {"picture scorers": own}
    if METHODS[config.method].stored:
        identity |= {"pairs": file_hash(KEPT), "latents": folder_hash(LATENTS)}
    if config.blind is not None:
        identity |= {"judge_models": asdict(params.evaluate.judge_models)}
    folder = resume.folder("tune", identity)
    distributed.check_same("parameters, inputs or code", folder.name)
    family = load_family(params.model)
    named = ScorerModels(params.score, params.evaluate.judge_models)
    trainer = policy_trainer(family, config, params.seed, params.model.shard, named)
    held_out = prompts.loc[prompts["split"] == "validation", "prompt"].tolist()[: config.validation_prompts]
    validate = validation(params, family, trainer.reward, held_out)
    tracked = Tracker("tune", params.tracking, asdict(params), folder)
    with tracked if distributed.is_first() else nullcontext() as tracker:

        def validated() -> dict[str, float]:
            figures = validate()
            if tracker is not None:
                tracker.show("tune/validation", validate.before_after())
            return figures

        diverged = None
        try:
            trainer.run(prompts.loc[prompts["split"] == "train", "prompt"].tolist(), validated, folder, tracker)
        except NotFinite as error:
            diverged = error
            log.error("%s: the best adapter so far is written to %s", error.where, TUNED)
    if distributed.is_first():
        write(params, trainer, diverged)
    distributed.wait()  # until it is written: a process that fails before ends all
    if diverged is not None:
        raise diverged


def write(params: Params, trainer: PolicyTrainer, diverged: NotFinite | None) -> None:
    """data/tuned and the figures; `diverged` is what ended the training too early."""
    config, family = params.tune, trainer.family
    history = trainer.history
    if trainer.best_value <= BASE_VALUE:
        log.warning("no validation was better than the base: data/tuned is the untouched adapter")
    metrics = {
        "prompts": sum(h["prompts"] for h in history),
        "pairs": sum(h["pairs"] for h in history),
        "updates": trainer.updates,
        **trainer.scale.figures,
        "validation": [
            {"rollout": h["rollout"], "value": h["validation"]} | ({"blind": h["blind"]} if "blind" in h else {})
            for h in history
            if "validation" in h
        ],
        "best_validation": trainer.best_value,
        "warnings": [f"rollout {h['rollout']}: {text}" for h in history for text in h.get("warnings", [])]
        + ([f"{diverged.where}: {diverged.what}"] if diverged is not None else []),
    }
    if config.method in ("lpo", "spo"):
        metrics["beta_per_nat"] = beta_per_nat(config, family.latent_shape)
    with atomic_folder(TUNED) as out:
        family.save_lora(out, trainer.best)
        write_json(out / "history.json", history)
        write_text(out / "README.md", model_card(asdict(params), {"tune": metrics}))
    write_json(paths.plot("tune_history"), [{k: v for k, v in h.items() if k != "by_timestep"} for h in history])
    write_json(paths.metrics("tune"), metrics)


def beta_per_nat(config: Tune, latent_shape: tuple[int, int, int]) -> float:
    """What beta weighs a difference of true log densities with, in 1 / nats: beta / D where they are means over D
    dimensions. Only this figure can be compared between resolutions: a pair is settled at about 3 / beta_per_nat nats.
    """
    return config.beta / (math.prod(latent_shape) if config.logprob_reduction == "mean" else 1)
