"""Gradients of an update in half precision, layer by layer, against float32: `python -m benchmarks.half_precision`.

A U-Net of SD1.5's real shapes with random weights, rounded to the dtype that is measured; float32 computes with these
same numbers, so that arithmetic alone differs. One pair of candidates at t = 501 with guidance 5 and beta 500, as in
the preset; the adapter (rank 4) lies away from zero, so that both of its halves have gradients. `--loss` multiplies
the loss: gradients of trained networks are about ten times smaller than those of random ones, so real runs lie near
0.1. The error of a layer is |g - g32| / |g32| over its two halves. Nothing is downloaded.

On a CPU the side of the latents can be reduced (64 is SD1.5's own); channels, heads and layers stay the real ones.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from dataclasses import replace
from typing import cast

import torch

from benchmarks.models import build, iteration
from lpo.families.sd import SD
from lpo.random import generator
from lpo.rewards.protocol import Reward
from lpo.train.common.loss_scale import LossScale
from lpo.train.policy.steps import Steps
from lpo.train.policy.trainer import PolicyTrainer

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def gradients(
    family: SD, steps: Steps, text: torch.Tensor, loss: float, scaled: bool
) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of the adapter by layer, flat, and the scale with which they are finite."""
    config = iteration("sd15", beta=500.0, timestep_weights="none")
    trainer = PolicyTrainer(family, cast(Reward, None), config, seed=0)  # an update asks no reward
    trainer.family.load_lora_state(
        {k: 0.02 * torch.randn(v.shape, generator=generator(5, k)) for k, v in trainer.trained.items()}
    )
    conditioning = replace(trainer.null, tensors={"prompt_embeds": text.to(family.dtype)})
    scale = trainer.scale = LossScale(family.dtype if scaled else torch.float32)
    while True:
        for weight in trainer.weights:
            weight.grad = None
        value, _ = trainer.loss(steps, conditioning)
        scale.scaled(loss * value.sum()).backward()
        scale.unscale(trainer.weights)
        if not scale.skips(all(bool(w.grad.isfinite().all()) for w in trainer.weights if w.grad is not None)):
            break
    found = defaultdict(list)
    for name, weight in zip(trainer.trained, trainer.weights, strict=True):
        assert weight.grad is not None
        found[name.split(".lora_")[0]].append(weight.grad.flatten())
    return {name: torch.cat(parts) for name, parts in found.items()}, scale.value


def made(side: int) -> tuple[Steps, torch.Tensor]:
    """A step with two candidates at one standard deviation a dimension, and the states of a prompt."""
    draws, shape = generator(0, "half precision"), (1, 4, side, side)
    x_t = torch.randn(shape, generator=draws)
    x_s = x_t[:, None] * 0.99 + 0.1 * torch.randn((1, 2, *shape[1:]), generator=draws)
    one, t, s = torch.ones(1, 2), torch.tensor([501]), torch.tensor([451])
    return Steps(x_t, x_s, one, one, t, s, torch.zeros(1, dtype=torch.long)), torch.randn(1, 77, 768, generator=draws)


def report(name: str, found: dict[str, torch.Tensor], wide: dict[str, torch.Tensor], scale: float) -> str:
    errors = torch.tensor([float((found[k] - wide[k]).norm() / wide[k].norm()) for k in wide])
    zeros = float(torch.cat([g == 0 for g in found.values()]).float().mean())
    return (
        f"| {name} | {scale:g} | {100 * zeros:.1f} % | {100 * float(errors.median()):.2f} % "
        f"| {100 * float(errors.max()):.2f} % | {int((errors > 0.02).sum())} of {len(errors)} |"
    )


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.half_precision", description=__doc__)
    options.add_argument("--side", type=int, default=64, help="of the latents")
    options.add_argument("--loss", type=float, nargs="+", default=[1.0, 0.125], help="factors of the loss")
    given = options.parse_args()
    steps, text = made(given.side)
    print("| dtype | scale | zeros | median error | largest error | layers above 2 % |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, dtype in DTYPES.items():
        half = build("sd15", torch.device("cpu"), dtype, side=given.side)
        rounded = replace(steps, x_t=steps.x_t.to(dtype).float())
        found = {}
        for loss in given.loss:
            for scaled in (True, False) if dtype == torch.float16 else (False,):
                label = f"{name}, loss x {loss:g}" + (", scaled" if scaled else "")
                found[label] = gradients(copy.deepcopy(half), rounded, text, loss, scaled)
        for part in half.modules().values():
            part.float()
        wide = replace(half, dtype=torch.float32)
        exact, _ = gradients(wide, rounded, text.to(dtype).float(), 1.0, False)
        for label, (grads, scale) in found.items():
            loss = float(label.split("x ")[1].split(",")[0])
            print(report(label, grads, {k: loss * g for k, g in exact.items()}, scale), flush=True)


if __name__ == "__main__":
    main()
