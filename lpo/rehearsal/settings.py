"""The parameters of a rehearsal: the preset's models, sizes and numerics; a few pairs, prompts and steps.

On a GPU the micro-batches are the preset's, so that the peak of memory is that of the real run. On a processor a
micro-batch is one row, and everything is computed in float32, which is what processors are fast at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lpo.config import Params, Tune
from lpo.errors import LpoError
from lpo.rehearsal.judges import KNOWN
from lpo.train.policy.methods import METHODS

FREE = -99.0  # a margin that every pair keeps
SLOWER = 100  # times: random weights are so sensitive that a whole step leaves the clip range, where gradients are zero
UPDATES = 2  # of the LoRA at least: at the first one half of it has no gradient, since the other half is zero


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    steps: int  # of the reward's training, and of a picture
    pairs: dict[str, int]
    prompts: int  # of validation and of test


def check(params: Params) -> None:
    """Raises LpoError for the embedded world, which is trained here anyway."""
    if params.dataset.source == "simulated":
        what = "the embedded world needs no rehearsal, since its own run takes half an hour"
        raise LpoError(what, "params.yaml: dataset.source: simulated", "name a preset: lpo rehearse sd15")


def size_of(params: Params, steps: int, cuda: bool) -> Size:
    """Two micro-batches of pairs to train on, one of prompts."""
    rows = max(params.reward.micro_batch_size, params.spm.micro_batch_size) if cuda else 1
    held_out = min(rows, 4) if cuda else 1
    pairs = {"train": UPDATES * rows, "validation": held_out, "test": held_out}
    return Size(steps, pairs, max(2, params.evaluate.batch_size if cuda else 2))  # two, for a standard deviation


def shortened(params: Params, size: Size, cuda: bool, resolution: int | None) -> Params:
    """The parameters of the rehearsal; models stay what they were."""

    def rows(number: int) -> int:
        return number if cuda else 1

    model = replace(params.model, device="cuda" if cuda else "cpu", shard=False, compile=params.model.compile and cuda)
    if not cuda:
        model = replace(model, dtype="fp32")
    if resolution is not None:
        model = replace(model, resolution=resolution)
    training: dict[str, Any] = {
        "pretrained": None, "steps": size.steps, "warmup_steps": 1, "validate_every": size.steps,
        "checkpoint_every": size.steps,
    }  # fmt: skip

    def batch(number: int) -> dict[str, Any]:
        return {"batch_size": rows(number), "micro_batch_size": rows(number)}

    reward = replace(params.reward, **training, **batch(params.reward.micro_batch_size))
    spm = replace(params.spm, **training, **batch(params.spm.micro_batch_size))
    if not cuda:
        reward, spm = replace(reward, dtype="fp32"), replace(spm, dtype="fp32")
    free = {name: replace(m, aesthetic=FREE, clip=FREE, vqa=FREE) for name, m in params.filter.strategies.items()}
    return replace(
        params,
        model=model,
        dataset=replace(
            params.dataset, source="pickapic", path="pairs", repository=None, limit=None, prompts=None,
            train_prompts=size.pairs["train"], validation_prompts=size.prompts, test_prompts=size.prompts,
        ),
        score=replace(params.score, table=None, batch_size=rows(params.score.batch_size)),
        filter=replace(params.filter, strategies=free),
        encode=replace(params.encode, batch_size=rows(params.encode.batch_size)),
        reward=reward,
        spm=spm,
        tune=tuning(params.tune, size, cuda),
        evaluate=replace(
            params.evaluate, judges=tuple(name for name in params.evaluate.judges if name in KNOWN), tuned="data/tuned",
            prompts_file=None, adapter_timesteps=None, prompts=size.prompts, images_per_prompt=1,
            num_inference_steps=size.steps, bootstrap=50,
            batch_size=rows(params.evaluate.batch_size), judge_batch_size=rows(params.evaluate.judge_batch_size),
        ),
        report=replace(params.report, examples=min(params.report.examples, size.prompts)),
        publish=replace(params.publish, hub=None, mlflow=None, wandb=None, folder=None),
        tracking=replace(params.tracking, wandb="disabled"),
    )  # fmt: skip


def tuning(config: Tune, size: Size, cuda: bool) -> Tune:
    """One rollout, whose rows make UPDATES batches of one micro-batch. Every gap of scores counts."""
    rows = config.micro_batch_size if cuda else 1
    by_steps = METHODS[config.method].batch == "steps"
    prompts = math.ceil(UPDATES * rows / size.steps) if by_steps else UPDATES * rows
    return replace(
        config, prompts=prompts, prompts_per_rollout=prompts, num_inference_steps=size.steps, batch_size=rows,
        micro_batch_size=rows, num_candidates=config.num_candidates if cuda else 2, validate_every=1,
        learning_rate=config.learning_rate / SLOWER,
        validation_prompts=size.prompts, checkpoint_every=1, timestep_range=(0, 1000),
        threshold=replace(config.threshold, schedule="constant", low=0.0, high=0.0),
        guard=replace(config.guard, prompts=1, seeds=2),
    )  # fmt: skip
