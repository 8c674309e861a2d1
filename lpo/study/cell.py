"""cell: what the stage tune reads -> studies/cell: an adapter trained on the clock, snapshots of it judged.

results.parquet  snapshot (-1: the base, -2: the base at its best guidance scale), rollout, prompts, seconds (of
                 training so far), prompt, seed, category, alignment, aesthetic, utility, all_correct; one row an image,
                 prompts and seeds as in every snapshot; validation: as in the stage tune
summary.json     method, seed, seconds, rollouts, prompts, updates, reward_step_seconds (0 where no reward is used)

Validation, judging and loading are not on the clock; the judge chooses nothing. Seconds differ from run to run, so
a cell is no part of the pipeline and equal inputs do not give equal bytes.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo.config import Params, SamplerSettings
from lpo.emoji.oracle import verdict_frame
from lpo.families import load_family
from lpo.families.family import Family
from lpo.files import atomic_folder, write_json, write_parquet
from lpo.paths import PROMPTS
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import StepPreferenceModel
from lpo.sampling.generate import generate
from lpo.tracking import Tracker
from lpo.train.policy.load import policy_trainer
from lpo.train.policy.trainer import PolicyTrainer
from lpo.train.policy.validation import validation
from lpo.train.reward.data import reward_data
from lpo.train.reward.trainer import RewardTrainer

OUT = Path("studies/cell")
BASE, BEST_BASE = -1, -2  # snapshots of no training
SEED = 52_000_000  # of the first picture
TIMED_STEPS = 5


@dataclass(frozen=True)
class Snapshot:
    """The EMA adapter after some training."""

    rollout: int
    prompts: int
    seconds: float
    state: dict[str, torch.Tensor]


class TimeIsUp(Exception):
    """Raised inside a training to end it."""


class Clock:
    """The trainer's `validate`: counts the seconds between its calls and takes a snapshot at each one.

    A training ends at the first call after `limit`, of which no snapshot is taken: no method is judged by more time
    than the others had. The very first snapshot is taken however long it took.
    """

    def __init__(self, trainer: PolicyTrainer, limit: float) -> None:
        self.trainer, self.limit = trainer, limit
        self.snapshots: list[Snapshot] = []
        self.seconds, self.started = 0.0, time.perf_counter()

    def __call__(self) -> dict[str, float]:
        self.seconds += time.perf_counter() - self.started
        if self.snapshots and self.seconds > self.limit:
            raise TimeIsUp
        state = {k: v.detach().clone() for k, v in self.trainer.ema.items()}
        # The entry of the rollout that is validated is not in the history yet.
        rollouts = len(self.trainer.history) + 1
        prompts = min(rollouts * self.trainer.config.prompts_per_rollout, self.trainer.config.prompts)
        self.snapshots.append(Snapshot(rollouts, prompts, self.seconds, state))
        self.started = time.perf_counter()
        return {"validation": float(rollouts)}


def run(params: Params) -> None:
    """Train `tune.method` for `study.seconds`, then judge the base and `study.snapshots` adapters."""
    table = pd.read_parquet(PROMPTS)
    test = table.query("split == 'test'").head(params.study.prompts)
    held_out = table.query("split == 'validation'")["prompt"].tolist()[: params.tune.validation_prompts]
    if params.study.seed is not None:
        params = replace(params, seed=params.study.seed)
    family = load_family(params.model)
    best = replace(params.evaluate.sampler, guidance_scale=params.evaluate.base_guidance_scale)
    nothing = {"rollout": 0, "prompts": 0, "seconds": 0.0, "validation": 0.0}
    frames = [
        assess(family, test, params, sampler).assign(snapshot=snapshot, **nothing)
        for snapshot, sampler in ((BASE, params.evaluate.sampler), (BEST_BASE, best))
    ]
    # The clock is looked at every `validate_every` rollouts; snapshots are validated when the time is up.
    params = replace(params, tune=replace(params.tune, guard=replace(params.tune.guard, action="off")))
    trainer = policy_trainer(family, params.tune, params.seed, params.model.shard)
    validate = validation(params, family, trainer.reward, held_out)
    clock = Clock(trainer, params.study.seconds)
    with atomic_folder(OUT) as out, Tracker("cell", params.tracking, asdict(params)) as tracker:
        checkpoints = out / "checkpoints"  # never resumed: a clock that is stopped and started tells nothing
        checkpoints.mkdir()
        with suppress(TimeIsUp):
            trainer.run(table.query("split == 'train'")["prompt"].tolist(), clock, checkpoints, tracker)
        shutil.rmtree(checkpoints)
        for i in chosen(len(clock.snapshots), params.study.snapshots):
            found = clock.snapshots[i]
            family.load_lora_state(found.state)
            frame = assess(family, test, params, params.evaluate.sampler).assign(validation=validate()["validation"])
            frames.append(frame.assign(snapshot=i, rollout=found.rollout, prompts=found.prompts, seconds=found.seconds))
        write_parquet(out / "results.parquet", pd.concat(frames, ignore_index=True))
        last = clock.snapshots[-1]
        summary = {
            "method": params.tune.method, "seed": params.seed, "seconds": last.seconds, "rollouts": last.rollout,
            "prompts": last.prompts, "updates": trainer.updates,
            "reward_step_seconds": reward_step_seconds(trainer, params),
        }  # fmt: skip
        write_json(out / "summary.json", summary)


def reward_step_seconds(trainer: PolicyTrainer, params: Params) -> float:
    """Median seconds of a training step of the method's reward on this machine; leaves the reward trained on.

    The reward comes out of DVC's cache, so its own training cannot be clocked: its steps times this is the estimate.
    """
    if trainer.method.stored:
        return 0.0
    reward = trainer.reward
    assert isinstance(reward, LatentRewardModel | StepPreferenceModel)
    config = params.reward if isinstance(reward, LatentRewardModel) else params.spm
    data = reward_data(config, params.seed)
    learner, seconds = RewardTrainer(reward, data.latents, config, params.seed), []
    for step in range(TIMED_STEPS + 1):  # the first one warms up
        start = time.perf_counter()
        learner.step(data.pairs["train"], step)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def chosen(count: int, most: int) -> list[int]:
    """At most `most` of `count` snapshots, the last one among them; each after a constant factor of training more.

    So that a method that uses prompts fast has snapshots at few prompts, where the slow ones end.
    """
    return sorted({round(float(place)) - 1 for place in np.geomspace(count, 1, most)})


def assess(family: Family, test: pd.DataFrame, params: Params, sampler: SamplerSettings) -> pd.DataFrame:
    """The judge's verdicts on one image of every prompt."""
    prompts = test["prompt"].tolist()
    seeds = list(range(SEED, SEED + len(prompts)))
    pictures = generate(family, prompts, seeds, sampler, "")
    rows = pd.DataFrame({"prompt": prompts, "seed": seeds, "category": test["category"].tolist()})
    return rows.join(verdict_frame(pictures, prompts, params.dataset.utility_weights))
