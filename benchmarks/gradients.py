"""Gradients in half precision against float32, layer by layer, at a real model's widths.

    python -m benchmarks.gradients sd15 --side 16
    python -m benchmarks.gradients sdxl --side 8 --device cuda

Both models have the same random weights, rounded to half precision, so that only arithmetic differs. What is compared
is one update of LPO's LoRA on the candidates of a rollout. Latents have fewer rows than a picture's: the layers have
their real widths, and a CPU must do without instructions for half precision.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from statistics import median

import torch

from benchmarks import models
from lpo import random
from lpo.config import Tune
from lpo.families.sd import SD
from lpo.families.sdxl import SDXL
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.policy.rollout import explore
from lpo.train.policy.steps import Steps
from lpo.train.policy.trainer import PolicyTrainer

CASES = [(torch.float16, True), (torch.float16, False), (torch.bfloat16, True)]


def errors(
    family: SD | SDXL, reward: LatentRewardModel, config: Tune, prompts: list[str], scaled: bool, size: float = 0.1
) -> dict[str, float]:
    """|g - g32| / |g32| of every tensor of the LoRA, by name, in one update on all steps of a rollout.

    family, reward: in half precision; float32 copies of them make g32. scaled: with the dynamic loss scale of training.
    size: standard deviation of the LoRA's weights, which the half that starts at zero would hide.
    """
    wide, other = copy.deepcopy((family, reward))
    for model in (wide, other.backbone):
        for part in model.modules().values():
            part.float()
        model.dtype = torch.float32
    gradients: list[dict[str, torch.Tensor]] = []
    steps: Steps | None = None
    for one, judge in ((family, reward), (wide, other)):
        trainer = PolicyTrainer(one, judge, replace(config, max_grad_norm=None), seed=0)
        trainer.scale.on &= scaled
        trainer.scale.value = trainer.scale.value if scaled else 1.0
        state = {k: size * torch.randn(v.shape, generator=random.generator(5, k)) for k, v in trainer.trained.items()}
        one.load_lora_state(state)
        if steps is None:
            select = trainer.method.select
            assert select is not None
            made, conditioning = explore(one, judge, select, prompts, config, random.generator(0, "gradients"))
            steps = made.steps
        else:
            conditioning = one.encode_prompts(prompts)
        skipped = -1
        while trainer.scale.skipped > skipped:  # a gradient that overflowed halves the scale, as in a training
            skipped = trainer.scale.skipped
            trainer.learn(steps, conditioning)
        found = zip(trainer.trained, trainer.weights, strict=True)
        gradients.append({k: w.grad for k, w in found if w.grad is not None})
    half, full = gradients
    assert all(g.dtype == torch.float32 for g in half.values()), "the LoRA's own weights are float32 in any training"
    return {k: float((half[k] - full[k]).norm() / full[k].norm()) for k in full}


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=__doc__)
    options.add_argument("size", choices=[*models.SIZES])
    options.add_argument("--side", type=int, default=16, help="of the latents")
    options.add_argument("--prompts", type=int, default=2)
    options.add_argument("--guidance-scale", type=float, default=5.0)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    config = models.iteration(
        given.size, prompts=given.prompts, prompts_per_rollout=given.prompts, num_inference_steps=2,
        num_candidates=2, micro_batch_size=given.prompts, guidance_scale=given.guidance_scale,
    )  # fmt: skip
    config = replace(config, threshold=replace(config.threshold, schedule="constant", low=0.0, high=0.0))
    device = torch.device(given.device)
    print("| | tensors | median error | 95th percentile | largest error | of |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dtype, scaled in CASES:
        family = models.build(given.size, device, dtype, side=given.side)
        reward = models.build_reward(given.size, device, dtype, side=given.side)
        found = errors(family, reward, config, models.prompts(given.prompts), scaled, size=0.02)
        ordered, worst = sorted(found.values()), max(found, key=found.__getitem__)
        shares = [median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1]]
        name = str(dtype).removeprefix("torch.") + ("" if scaled else ", not scaled")
        print(f"| {name} | {len(found)} | {' | '.join(f'{100 * x:.2f} %' for x in shares)} | {worst} |", flush=True)


if __name__ == "__main__":
    main()
