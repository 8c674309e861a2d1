"""lpo: data/base, data/lrm, data/prompts.parquet -> data/lpo, a LoRA that `pipe.load_lora_weights` reads."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from lpo.config import Params
from lpo.errors import LpoError
from lpo.evaluate.card import model_card
from lpo.evaluate.generation import generate, to_tensor
from lpo.families import load_family
from lpo.families.sd import SD
from lpo.files import atomic_folder, file_hash, folder_hash, write_json, write_text
from lpo.rewards import lrm
from lpo.rewards.published import Published, load_scorers
from lpo.rewards.small import Scorers
from lpo.tracking import Tracker
from lpo.train import checkpoint
from lpo.train.policy import BASE_VALUE, PolicyTrainer

PROMPTS = Path("data/prompts.parquet")
SEED_OF_VALIDATION = 10_000

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Fine-tune the adapter; the best one by the scorers on validation prompts is written."""
    config = params.lpo
    prompts = pd.read_parquet(PROMPTS)
    identity = {
        "lpo": asdict(config), "model": asdict(params.model), "seed": params.seed, "prompts": file_hash(PROMPTS),
        "base": folder_hash(params.model.path), "lrm": folder_hash("data/lrm"),
        "scorers": asdict(params.score) if params.score.scorers == "published" else folder_hash(params.score.scorers),
    }  # fmt: skip
    folder = checkpoint.folder("lpo", identity)
    family = load_family(params.model)
    reward = lrm.load(Path("data/lrm"), family.device, family.dtype)
    if reward.backbone.latent_shape != family.latent_shape:
        raise LpoError(
            f"the reward reads latents {reward.backbone.latent_shape}, the model makes {family.latent_shape}",
            "data/lrm",
            "train the reward on a model with the same VAE",
        )
    trainer = PolicyTrainer(family, reward, config, params.seed)
    held_out = prompts.loc[prompts["split"] == "validation", "prompt"].tolist()[: config.validation_prompts]
    validate = Validation(family, load_scorers(params.score, family.device), held_out, params)
    with Tracker("lpo", params) as tracker:
        trainer.run(prompts.loc[prompts["split"] == "train", "prompt"].tolist(), validate, folder, tracker)
    history = trainer.history
    if trainer.best_value <= BASE_VALUE:
        log.warning("no validation was better than the base: data/lpo is the untouched adapter")
    metrics = {
        "prompts": sum(h["prompts"] for h in history),
        "pairs": sum(h["pairs"] for h in history),
        "updates": trainer.updates,
        "validation": [{"rollout": h["rollout"], "value": h["validation"]} for h in history if "validation" in h],
        "best_validation": trainer.best_value,
    }
    with atomic_folder("data/lpo") as out:
        family.save_lora(out, trainer.best)
        write_json(out / "history.json", history)
        write_text(out / "README.md", model_card(asdict(params), {"lpo": metrics}))
    write_json("plots/lpo_history.json", [{k: v for k, v in h.items() if k != "by_timestep"} for h in history])
    write_json("metrics/lpo.json", metrics)


class Validation:
    """The mean gain over the base on validation prompts, in standard deviations of its scores, over three scorers.

    Not the share of prompts won: a shift that is tiny and the same everywhere wins nearly all of them.

    The judge has no say here: what chooses the checkpoint is not what the evaluation measures.
    """

    def __init__(self, family: SD, scorers: Scorers | Published, prompts: list[str], params: Params) -> None:
        self.family, self.scorers, self.prompts, self.params = family, scorers, prompts, params
        with family.reference():
            self.base = self.scores()

    def scores(self) -> dict[str, np.ndarray]:
        config = self.params.evaluate
        seeds = list(range(SEED_OF_VALIDATION, SEED_OF_VALIDATION + len(self.prompts)))
        pictures = generate(
            self.family, self.prompts, seeds, config.num_inference_steps, config.guidance_scale, config.eta,
            config.batch_size, "",
        )  # fmt: skip
        return {k: v.numpy() for k, v in self.scorers.score(to_tensor(pictures), self.prompts).items()}

    def __call__(self) -> float:
        now = self.scores()
        return float(np.mean([(now[k] - self.base[k]).mean() / self.base[k].std() for k in now]))
