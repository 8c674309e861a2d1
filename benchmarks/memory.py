"""Bytes of every stage of a preset beside what doctor says, as a table: `python -m benchmarks.memory sd15 sdxl`.

They are counted by running the stages' own code on the meta device: trainers with their optimizers, validation, the
sampler, the scorers and judges. Doctor's formulas have no part in it; both count with the same meter, whose own tests
compare it with sums by hand (tests/doctor/test_memory.py). Of GPU memory everything is counted that torch allocates; an
allocator's rounding, work space of kernels and the CUDA context are not. Attention is taken as fused.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks import memory_models as models
from lpo.config import Params
from lpo.config.presets import PRESETS, with_preset
from lpo.doctor.autocast import autocast_as
from lpo.doctor.memory import META, Alive, _fused, attention_as, configured
from lpo.doctor.stages import needs
from lpo.evaluate.reward_judge import RewardJudge
from lpo.families import DTYPES, codec_of, load_family
from lpo.families.family import Family
from lpo.paths import SPM
from lpo.random import generator
from lpo.sampling.generate import generate
from lpo.train.common import checkpoint
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import explore, idle
from lpo.train.policy.steps import Steps
from lpo.train.policy.trainer import PolicyTrainer
from lpo.train.policy.validation import Validation
from lpo.train.reward.pairs import Pairs
from lpo.train.reward.trainer import RewardTrainer

Counts = dict[tuple[str, str], int]  # (stage, moment) -> bytes


class Meter(Alive):
    """Bytes on the device alone: what the host makes on the way there does not count."""

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            super().count(storage)

    def restart(self) -> None:
        gc.collect()
        self.peak = self.now

    @contextmanager
    def beside(self, *modules: nn.Module) -> Iterator[None]:
        """Inside, these are there as well, which were made outside."""
        size = held(*modules)
        self.now += size
        yield
        self.now -= size


@contextmanager
def metering() -> Iterator[Meter]:
    """A meter, attention fused, and nothing that reads numbers back: on the meta device there are none.

    All numbers are finite, and no mask of attention is one that could be left out.
    """
    truth = torch.Tensor.__bool__

    def numbers(tensor: torch.Tensor) -> np.ndarray:
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    fakes = {
        "cpu": lambda x: torch.zeros(x.shape, dtype=x.dtype) if x.is_meta else x, "numpy": numbers,
        "__bool__": lambda x: not x.is_meta and truth(x), "isfinite": lambda x: torch.ones(1, dtype=torch.bool),
    }  # fmt: skip
    patches = [patch.object(torch.Tensor, name, fake) for name, fake in fakes.items()]
    patches += [patch.object(checkpoint, "save_file", lambda *_: None)]
    patches += [patch.object(checkpoint, "replacing", lambda path: nullcontext(path))]
    for each in patches:
        each.start()
    try:
        with attention_as(_fused), Meter() as meter:
            yield meter
    finally:
        for each in reversed(patches):
            each.stop()


def held(*modules: nn.Module | None) -> int:
    """Bytes of all storages of parameters and buffers, each once."""
    tensors = [t for module in modules if module is not None for t in [*module.parameters(), *module.buffers()]]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def counts(params: Params, stages: tuple[str, ...] = ("score", "encode", "reward", "tune", "evaluate")) -> Counts:
    """Bytes of every stage and moment on a GPU."""
    params = replace(params, model=configured(params.model))
    base = replace(params.reward, base=configured(replace(params.model, path=params.reward.base)).path
                   if params.reward.base else None)  # fmt: skip
    params = replace(params, reward=base)
    own = {"score": of_score, "encode": of_encode, "reward": of_reward, "tune": of_tune, "evaluate": of_evaluate}
    found: Counts = {}
    for stage in stages:
        found |= own[stage](params)
    return found


def of_score(params: Params) -> Counts:
    scorers = models.scorers(params.score.models, ("aesthetic", "clip", "vqa"))
    n = params.score.batch_size
    with metering() as meter:
        scorers.score(models.pictures(n), models.captions(n))
    return {("score", "scoring"): held(*models.modules_of(scorers)) + meter.peak}


def of_encode(params: Params) -> Counts:
    codec = load_family(params.model, device=META).codec
    side = load_family(params.model, device=META).pixels
    with metering() as meter:
        codec.encode(torch.zeros(params.encode.batch_size, 3, side, side))
    return {("encode", "encoding"): held(codec.vae) + meter.peak}


def of_reward(params: Params) -> Counts:
    """Two training steps, the second one beside Adam's moments; then pairs of validation and test, then saving."""
    pixel = Path(params.tune.reward) == SPM
    stage, model = ("spm", models.spm(params)) if pixel else ("reward", models.reward_to_train(params))
    config: Any = params.spm if pixel else params.reward
    config = replace(config, batch_size=config.micro_batch_size)
    shape, pairs = model.backbone.latent_shape, config.batch_size
    latents = SimpleNamespace(
        captions=models.captions(pairs), shape=shape,
        moments=lambda places: torch.zeros(len(places), 2 * shape[0], *shape[1:]),
    )  # fmt: skip
    vae = [model.backbone.codec.vae] if pixel else []
    weights = held(model, *model.backbone.modules().values(), *vae)
    found: Counts = {}
    places, ones = np.zeros((pairs, 2), int), torch.ones(pairs)
    stored = Pairs(places, places, torch.arange(pairs), torch.stack([ones, 1 - ones], 1), ones)
    with metering() as meter, autocast_as(DTYPES[config.dtype]):
        trainer = RewardTrainer(model, cast(Any, latents), config, seed=0)
        trainer.autocast = nullcontext  # type: ignore[method-assign, assignment]
        for step in (0, 1):
            trainer.step(stored, step)
        found[stage, "training"] = weights + meter.peak
        meter.restart()
        trainer.accuracy(stored, bins=1)
        found[stage, "validation"] = weights + meter.peak
        meter.restart()
        trainer.ensemble_accuracy(stored, [200], 1)
        found[stage, "test"] = weights + meter.peak
        meter.restart()
        checkpoint.save_training(Path("nowhere"), 1, trainer.optimizer, {"model": trainer.trained})
        found[stage, "saving"] = weights + meter.peak
    return found


def of_tune(params: Params) -> Counts:
    config, found = params.tune, cast(Counts, {})
    family = models.family(params)
    reward = models.reward_of_tune(params, family)
    weights = held(family.codec.vae, reward, *family.modules().values(), *reward.backbone.modules().values())
    away = held(*idle(family, reward))
    scorers = models.scorers(params.score.models, config.validation_scorers)
    n, method, per_rollout = config.validation_prompts, METHODS[config.method], config.prompts_per_rollout
    with metering() as meter:
        part = min(config.batch_size, config.micro_batch_size)
        with META:  # beside another adapter peft would leave the new one on the CPU
            trainer = PolicyTrainer(family, reward, replace(config, batch_size=part), seed=0)
        meter.restart()
        validate = models.Quiet(params, family, reward, models.captions(n))
        prompts = meter.peak
        batch, conditioning = _update(trainer, models.captions(per_rollout))
        meter.restart()
        for _ in range(2):
            trainer.learn(batch[torch.arange(part)], conditioning)
        found["tune", "training"] = weights + meter.peak - away
        del batch, conditioning
        peaks = []
        for steps in (2, 3):  # its memory is linear in the number of steps
            meter.restart()
            short = replace(config, num_inference_steps=steps, timestep_range=(0, 1001))
            explore(family, reward, cast(Any, method.select), models.captions(per_rollout), short, generator(0, "x"))
            peaks.append(meter.peak)
        rollout = peaks[1] + (config.num_inference_steps - 3) * (peaks[1] - peaks[0])
        found["tune", "rollout"] = weights + rollout - away
        meter.restart()
        family.encode_prompts(models.captions(per_rollout))
        reward.encode_prompts(models.captions(per_rollout))
        found["tune", "prompts"] = weights + max(prompts, meter.peak)
        meter.restart()
        trainer.validation(lambda: _validated(validate, params, scorers, meter))
        found["tune", "validation"] = weights + meter.peak
        meter.restart()
        trainer.save(Path("nowhere"), 1)
        found["tune", "saving"] = weights + meter.peak
    return found


def _update(trainer: PolicyTrainer, prompts: list[str]) -> tuple[Steps, Any]:
    """All steps of a rollout, each kept, on the device."""
    family, config = trainer.family, trainer.config
    conditioning = family.encode_prompts(prompts)
    rows = len(prompts) * config.num_inference_steps
    x_t = torch.empty(rows, *family.latent_shape, device=META, dtype=family.dtype)
    x_s = torch.empty(rows, 2, *family.latent_shape, device=META, dtype=family.dtype)
    t, prompt = torch.zeros(2, rows, device=META, dtype=torch.long)
    ones = torch.ones(rows, 2, device=META)
    return Steps(x_t, x_s, ones, ones.clone(), t, t.clone(), prompt), conditioning


def _validated(validate: Validation, params: Params, scorers: Any, meter: Meter) -> dict[str, float]:
    """A batch of pictures is drawn, decoded and scored; the scorers come for as long."""
    size = validate.sampler.batch_size
    prompts = models.captions(size)
    latents = validate.draw(prompts, 0)
    validate.pictures(latents)
    validate.reward.score(latents, torch.ones(size, device=META).long(), validate.text[: len(latents)], validate.null)
    size = params.score.batch_size
    with meter.beside(*models.modules_of(scorers)):
        scorers.score(models.pictures(size), models.captions(size))
    return {"validation": 0.0}


def of_evaluate(params: Params) -> Counts:
    config, found = params.evaluate, cast(Counts, {})
    family = models.family(params)
    weights, n = held(family.codec.vae, *family.modules().values()), config.batch_size
    with metering() as meter:
        family.add_lora(params.tune.lora_rank, 0)
        settings = replace(config.sampler, num_inference_steps=1)
        generate(family, models.captions(n), list(range(n)), settings, "")
    found["evaluate", "drawing"] = weights + meter.peak
    n = config.judge_batch_size
    for name, judge in models.judges(params).items():
        with metering() as meter:
            judge.score(models.pictures(n), models.captions(n))
        found["evaluate", name] = held(*models.modules_of(judge)) + meter.peak
    if Path(params.tune.reward) != SPM:
        found["evaluate", "lrm"] = _as_judge(params, n)
    return found


def _as_judge(params: Params, n: int) -> int:
    family: Family | None = models.family(params) if params.reward.trainable == "adapter" else None
    reward = models.reward_of_tune(params, family)
    codec = family.codec if family else codec_of_meta(params)
    side = models.family(params).pixels
    with metering() as meter:
        RewardJudge(codec, cast(Any, reward)).score([Image.new("RGB", (side, side))] * n, models.captions(n))
    return held(codec.vae, reward, *reward.backbone.modules().values()) + meter.peak


def codec_of_meta(params: Params) -> Any:
    with patch("lpo.families.device_of", lambda model: META):
        return codec_of(params.model)


def table(name: str, params: Params) -> str:
    """Rows of a preset: every moment, the largest one of a stage in bold."""
    counted = counts(params)
    lines = []
    for need in needs(params):
        own = {moment: size for (stage, moment), size in counted.items() if stage == need.stage}
        for moment, said in need.moments.items():
            size, total = own[moment], sum(said)
            mark = "**" if size == max(own.values()) else ""
            figures = f"{size / 1e9:.2f} | {total / 1e9:.2f} | {mark}{100 * (total / size - 1):+.1f} %{mark}"
            lines.append(f"| {name} | {need.stage} | {moment} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    known = sorted(file.stem for file in PRESETS.glob("*.yaml") if file.stem != "emoji")
    options.add_argument("presets", nargs="*", default=known, metavar="PRESET", help="default: all but emoji")
    print("| preset | stage | moment | counted, GB | doctor, GB | doctor more |\n| --- | --- | --- | --- | --- | --- |")
    for name in options.parse_args().presets:
        print(table(name, with_preset(name, Path(__file__).parents[1] / "params.yaml")), flush=True)


if __name__ == "__main__":
    main()
