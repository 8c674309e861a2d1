"""lpo: data/base, the reward, data/prompts.parquet -> data/tuned, a LoRA that `pipe.load_lora_weights` reads."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo.config import Params, Tune
from lpo.data.latents import Latents
from lpo.errors import LpoError
from lpo.families import device_of, load_family
from lpo.families.family import Family
from lpo.files import atomic_folder, file_hash, folder_hash, write_json, write_text
from lpo.report.cards import model_card
from lpo.rewards.load import load_reward
from lpo.rewards.protocol import Reward
from lpo.sampling.generate import sample, to_tensor, to_uint8
from lpo.scorers.embedded import Scorers
from lpo.scorers.published import Published, load_scorers
from lpo.tracking import Tracker
from lpo.train import checkpoint, distributed
from lpo.train.offline import StoredPairs, stored_pairs
from lpo.train.policy import BASE_VALUE, PolicyTrainer

PROMPTS = Path("data/prompts.parquet")
KEPT, LATENTS = Path("data/filtered/kept.parquet"), Path("data/latents")
SEED_OF_VALIDATION, SEED_OF_DIVERSITY = 10_000, 20_000
SHOWN = 8  # validation prompts whose pictures a tracker gets
LARGEST = 256  # pixels of their side

log = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Fine-tune the adapter; the best one by the scorers on validation prompts is written."""
    with distributed.joined(device_of(params.model)):
        tune(params)


def tune(params: Params) -> None:
    """What each process does; the first one writes."""
    config = params.tune
    prompts = pd.read_parquet(PROMPTS)
    identity = {
        "tune": asdict(config), "model": asdict(params.model), "seed": params.seed, "prompts": file_hash(PROMPTS),
        "base": folder_hash(params.model.path), "reward": folder_hash(config.reward),
        "scorers": asdict(params.score) if params.score.scorers == "published" else folder_hash(params.score.scorers),
    }  # fmt: skip
    if config.method == "diffusion_dpo":
        identity |= {"pairs": file_hash(KEPT), "latents": folder_hash(LATENTS)}
    folder = checkpoint.folder("tune", identity)
    family = load_family(params.model)
    trainer = trainer_of(params, family)
    held_out = prompts.loc[prompts["split"] == "validation", "prompt"].tolist()[: config.validation_prompts]
    scorers = load_scorers(params.score, family.device)
    validate = Validation(family, trainer.reward, scorers, held_out, params)
    with Tracker("tune", params) if distributed.is_first() else nullcontext() as tracker:

        def validated() -> dict[str, float]:
            figures = validate()
            if tracker is not None:
                tracker.show("tune/validation", validate.before_after())
            return figures

        trainer.run(prompts.loc[prompts["split"] == "train", "prompt"].tolist(), validated, folder, tracker)
    if not distributed.is_first():
        return
    history = trainer.history
    if trainer.best_value <= BASE_VALUE:
        log.warning("no validation was better than the base: data/tuned is the untouched adapter")
    metrics = {
        "prompts": sum(h["prompts"] for h in history),
        "pairs": sum(h["pairs"] for h in history),
        "updates": trainer.updates,
        "validation": [{"rollout": h["rollout"], "value": h["validation"]} for h in history if "validation" in h],
        "best_validation": trainer.best_value,
        "warnings": [f"rollout {h['rollout']}: {text}" for h in history for text in h.get("warnings", [])],
    }
    with atomic_folder("data/tuned") as out:
        family.save_lora(out, trainer.best)
        write_json(out / "history.json", history)
        write_text(out / "README.md", model_card(asdict(params), {"tune": metrics}))
    write_json("plots/tune_history.json", [{k: v for k, v in h.items() if k != "by_timestep"} for h in history])
    write_json("metrics/tune.json", metrics)


def trainer_of(params: Params, family: Family) -> PolicyTrainer:
    """The trainer of `tune.method` with its reward. Raises LpoError where the method's name contradicts the reward."""
    config = params.tune
    reward = load_reward(Path(config.reward), family, params.model.shard)
    if config.method == "lpo" and reward.space == "pixel":
        raise LpoError(
            "lpo scores noisy latents, and this reward scores pictures",
            f"params.yaml: tune.reward: {config.reward}",
            "set tune.method to spo, or tune.reward to data/reward",
        )
    return PolicyTrainer(family, reward, config, params.seed, pairs_of(config))


def pairs_of(config: Tune) -> StoredPairs | None:
    """The train pairs that diffusion_dpo learns from; no other method reads them."""
    if config.method != "diffusion_dpo":
        return None
    return stored_pairs(pd.read_parquet(KEPT).query("split == 'train'"), Latents(LATENTS))


class Validation:
    """What an adapter gained over the base on validation prompts, in standard deviations of the base's scores.

    validation  mean over three scorers; it chooses the checkpoint. Not the share of prompts won: a shift that is tiny
                and the same everywhere wins nearly all of them.
    reward      of the reward that is climbed, on finished latents: what the guard compares validation with
    diversity   mean distance between pictures of one prompt over seeds, divided by the base's own

    The judge has no say here: what chooses the checkpoint is not what the evaluation measures.
    """

    def __init__(
        self, family: Family, reward: Reward, scorers: Scorers | Published, prompts: list[str], params: Params
    ) -> None:
        self.family, self.reward, self.scorers, self.prompts, self.params = family, reward, scorers, prompts, params
        self.text, self.null = reward.encode_prompts(prompts), reward.encode_prompts([""])
        with family.reference():
            self.base, self.spread = self.scores(), self.diversity()
        self.before = self.shown

    def draw(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        """Finished latents (N, C, h, w); each of several processes draws its share."""
        config = self.params.evaluate
        parts = [torch.empty(0, *self.family.latent_shape, device=self.family.device, dtype=self.family.dtype)]
        for rows, counts in distributed.batches(len(prompts), config.batch_size):
            drawn = sample(self.family, [prompts[i] for i in rows], [seeds[i] for i in rows], config.sampler)
            parts += [drawn] if counts else []
        return torch.cat(distributed.gathered(torch.cat(parts).cpu())).to(self.family.device)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [-1, 1], rounded as pictures in files are."""
        size = self.params.evaluate.batch_size
        return to_tensor(np.concatenate([to_uint8(self.family.decode(part)) for part in latents.split(size)]))

    @torch.no_grad()
    def scores(self) -> dict[str, np.ndarray]:
        latents = self.draw(self.prompts, [SEED_OF_VALIDATION + i for i in range(len(self.prompts))])
        pictures = self.pictures(latents)
        self.shown = to_uint8(pictures[:SHOWN])
        size = self.params.score.batch_size
        parts = [
            self.scorers.score(pictures[i : i + size], self.prompts[i : i + size])
            for i in range(0, len(self.prompts), size)
        ]
        found = {k: torch.cat([part[k] for part in parts]).numpy() for k in parts[0]}
        t = torch.full((len(latents),), 1, device=latents.device)
        return found | {"reward": self.reward.score(latents, t, self.text, self.null).cpu().numpy()}

    def diversity(self) -> float:
        """Root mean square difference of two pictures of one prompt, mean over pairs of seeds and prompts."""
        guard = self.params.tune.guard
        if guard.action == "off":
            return 1.0
        prompts = [prompt for prompt in self.prompts[: guard.prompts] for _ in range(guard.seeds)]
        seeds = [SEED_OF_DIVERSITY + i for i in range(len(prompts))]
        pictures = self.pictures(self.draw(prompts, seeds)).flatten(1).unflatten(0, (-1, guard.seeds))
        first, second = torch.triu_indices(guard.seeds, guard.seeds, offset=1)
        return float((pictures[:, first] - pictures[:, second]).square().mean(2).sqrt().mean())

    def before_after(self) -> np.ndarray:
        """Pictures of the first prompts, (2 H, n W, 3): the base above, the adapter validated last below."""
        every = -(-self.shown.shape[1] // LARGEST)  # pixel
        rows = [np.concatenate(list(row[:, ::every, ::every]), axis=1) for row in (self.before, self.shown)]
        return np.concatenate(rows)

    def __call__(self) -> dict[str, float]:
        now = self.scores()
        gain = {k: (now[k] - self.base[k]).mean() / self.base[k].std() for k in now}
        reward = float(gain.pop("reward"))
        diversity = self.diversity() / self.spread
        return {"validation": float(np.mean(list(gain.values()))), "reward": reward, "diversity": diversity}
