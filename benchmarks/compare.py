"""Ours beside the published recipe: one iteration, which is a rollout and the updates on its pairs.

`Ours` calls what the stage `lpo` calls: `explore` and `PolicyTrainer.learn`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from benchmarks import models
from benchmarks.meters import Flops, peak_bytes, seconds, size_of
from benchmarks.published import Published
from lpo.config import Tune
from lpo.doctor.memory import Alive
from lpo.families.conditioning import Conditioning
from lpo.families.sd import SD
from lpo.families.sdxl import SDXL
from lpo.random import generator
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.policy.rollout import explore, idle
from lpo.train.policy.steps import Steps
from lpo.train.policy.trainer import PolicyTrainer

SHARE = 4  # one pair of so many is kept
META = torch.device("meta")


class Ours:
    """The stages' code on a family and a reward."""

    def __init__(self, family: SD | SDXL, reward: LatentRewardModel, config: Tune, seed: int) -> None:
        self.family, self.reward, self.config = family, reward, config
        self.trainer = PolicyTrainer(family, reward, config, seed)

    def rollout(self, prompts: list[str], draws: torch.Generator) -> tuple[Steps, Conditioning]:
        select = self.trainer.method.select
        assert select is not None
        made, conditioning = explore(self.family, self.reward, select, prompts, self.config, draws)
        if self.family.device.type == "meta":  # no scores there: a quarter of the rows stands for those kept
            return made.steps[torch.arange(len(made.steps) // SHARE, device="meta")], conditioning
        return made.steps[made.keep.flatten()], conditioning

    def update(self, made: tuple[Steps, Conditioning], draws: torch.Generator) -> torch.Tensor:
        steps, conditioning = made
        order = torch.randperm(len(steps), generator=draws)
        parts = order.tensor_split(max(1, round(len(steps) / self.config.batch_size)))
        return torch.cat([self.trainer.learn(steps[p.to(steps.t.device)], conditioning)[0] for p in parts])

    def first(self, made: tuple[Steps, Conditioning], count: int) -> tuple[Steps, Conditioning]:
        """A batch of so many pairs, rows repeated where there are fewer."""
        rows = torch.arange(count, device=made[0].t.device) % len(made[0])
        return made[0][rows], made[1]

    @property
    def memory(self) -> dict[str, int]:
        """Bytes that are there all the time; gradients belong to an update."""
        rewards = self.reward.backbone.modules().values()  # those of the family where the reward is an adapter of it
        vae = self.family.codec.vae
        assert vae is not None
        kept = size_of(*self.family.modules().values(), vae, *rewards, self.reward)
        trained = sum(p.numel() for p in self.trainer.weights)
        return {"weights": kept, "optimizer": (8 + 8) * trained}  # two moments, the average and the best so far

    @property
    def away(self) -> int:
        """Bytes that wait in host memory during the steps of a rollout and updates, on a GPU."""
        return size_of(*idle(self.family, self.reward))

    def encode(self, prompts: list[str]) -> None:
        """What a rollout does while nothing is away."""
        self.family.encode_prompts(prompts)
        self.reward.encode_prompts(prompts)


class Theirs(Published):
    """The published recipe, with the same two calls."""

    away = 0

    def encode(self, prompts: list[str]) -> None:
        """Part of each step, so the peak of the rollout holds it."""

    def rollout(self, prompts: list[str], draws: torch.Generator) -> list[dict[str, Any]]:  # type: ignore[override]
        kept = len(prompts) // SHARE if self.prompt_encoder.device.type == "meta" else None
        return super().rollout(prompts, draws, kept)

    def first(self, made: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        """A batch of so many pairs, which are repeated where there are fewer."""
        one = {"text": {k: v[:1] for k, v in made[0]["text"].items()}, "t": made[0]["t"], "s": made[0]["s"]}
        return [one | {k: made[0][k][:1] for k in ("x", "w", "l")}] * count

    @property
    def memory(self) -> dict[str, int]:
        """The reference, and the reward's whole U-Net, beside the policy; the VAE stays on the device."""
        family, heads = self.prompt_encoder, [self.reward.visual_projection, self.reward.text_projection]
        encoders = [e for f in (family, self.reward.backbone) for e in list(f.modules().values())[1:]]
        kept = size_of(self.unet, self.reference, self.reward, *encoders, *heads)
        assert family.codec.vae is not None
        vae = size_of(family.codec.vae)
        return {"weights": kept + vae, "optimizer": 8 * sum(p.numel() for p in self.weights)}


def both(
    size: str, device: torch.device, dtype: torch.dtype, side: int | None
) -> tuple[SD | SDXL, LatentRewardModel]:
    return models.build(size, device, dtype, side=side), models.build_reward(size, device, dtype, side=side)


def build_both(
    size: str, device: torch.device, dtype: torch.dtype, config: Tune, side: int | None = None
) -> tuple[Ours, Theirs]:
    """On one set of weights; the published recipe makes its copies of them."""
    family, reward = both(size, device, dtype, side)
    recompute = size in models.SIZES and models.SIZES[size].recompute
    theirs = Theirs(family, reward, config, 0, recompute)
    return ours_of(family, reward, config), theirs


def ours_of(family: SD | SDXL, reward: LatentRewardModel, config: Tune) -> Ours:
    device = family.device
    with device if device.type == "meta" else nullcontext():  # peft makes a second adapter on the CPU
        return Ours(family, reward, config, 0)


def assert_equal(ours: Ours, theirs: Theirs, prompts: list[str]) -> dict[str, float]:
    """Both make the same pairs, losses and weights. The largest differences; raises AssertionError beyond rounding."""
    mine, his = ours.rollout(prompts, generator(0, "equal")), theirs.rollout(prompts, generator(0, "equal"))
    steps = mine[0]
    rows = {k: torch.cat([p[k] for p in his]) for k in ("x", "w", "l")}
    wide = steps.x_t.dtype == torch.float32
    tolerance: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3} if wide else {"rtol": 5e-2, "atol": 5e-2}
    for one, other in ((steps.x_t, rows["x"]), (steps.best, rows["w"]), (steps.worst, rows["l"])):
        torch.testing.assert_close(one.float(), other.float(), **tolerance)
    losses = [ours.update(mine, generator(1, "equal")), theirs.update(his, generator(1, "equal"))]
    torch.testing.assert_close(*losses, **tolerance)
    weights = [torch.cat([w.detach().flatten() for w in x]) for x in (ours.trainer.weights, theirs.weights)]
    moved = ours.config.learning_rate * len(losses[0]) / ours.config.batch_size
    difference = float((weights[0] - weights[1]).abs().mean())
    assert difference < 0.05 * moved, f"weights differ by {difference:.2e} on average, steps are about {moved:.2e}"
    latents, loss = steps.best - rows["w"], losses[0] - losses[1]
    return {"latents": float(latents.abs().max()), "losses": float(loss.abs().max()), "weights": difference}


def measure(recipe: Ours | Theirs, prompts: list[str], meter: Callable[[Callable[[], Any]], Any]) -> dict[str, Any]:
    """The two parts of an iteration under a meter."""
    made: list[Any] = []
    rollout = meter(lambda: made.append(recipe.rollout(prompts, generator(2, "measure"))))
    return {"rollout": rollout, "update": meter(lambda: recipe.update(made[-1], generator(3, "measure")))}


def settings(size: str) -> list[str]:
    """What is counted of a size: the published recipe, and ours in two or three settings.

    ours          nothing is computed twice, micro-batches bound the activations
    recomputed    activations are computed again in backward, as in the published recipe (where it does so)
    one_backbone  the reward an adapter of the policy's model; recomputed where the published recipe does so
    """
    return ["published", "ours", *(["recomputed"] if models.SIZES[size].recompute else []), "one_backbone"]


def on_meta(size: str, setting: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """FLOPs and bytes of an iteration at full size in one of the `settings`."""
    config, recompute = models.iteration(size), models.SIZES[size].recompute
    family = models.build(size, META, dtype)
    reward = models.build_reward(size, META, dtype, None, family if setting == "one_backbone" else None)
    if setting == "published":
        return count(Theirs(family, reward, config, 0, recompute), config)
    if recompute and setting != "ours":
        family.denoiser.enable_gradient_checkpointing()
    return count(ours_of(family, reward, config), config)


def beside(size: str, counts: dict[str, dict[str, Any]], dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Every setting of ours beside the published recipe, from what `on_meta` counted of each."""
    named: dict[str, Any] = {"size": size, "dtype": name_of(dtype), "prompts": models.SIZES[size].prompts}
    published = counts["published"]
    return {
        name: named | {"ours": found, "published": published, "ratio": ratios(found, published)}
        for name, found in counts.items()
        if name != "published"
    }


def flops_at(**changes: int) -> dict[str, int]:
    """FLOPs of our iteration at SD1.5 shapes, with another number of something, or another side of the latents."""
    side = changes.pop("side", None)
    config = models.iteration("sd15", **changes)
    family, reward = both("sd15", META, torch.bfloat16, side)
    return walked(ours_of(family, reward, config), config)[0]


def count(recipe: Ours | Theirs, config: Tune) -> dict[str, dict[str, int]]:
    """FLOPs and bytes of an iteration on the meta device; a batch tells the bytes of all updates."""
    flops, peak, batch = walked(recipe, config)
    peaks = {"rollout": peak, "update": peak_bytes(lambda: recipe.update(batch, generator(3, "measure")))}
    kept, words = recipe.memory, models.prompts(config.prompts_per_rollout)
    with torch.no_grad():
        encoding = peak_bytes(lambda: recipe.encode(words))
    most = max(encoding, max(peaks.values()) - recipe.away)
    return {"flops": flops, "bytes": kept | peaks | {"all": sum(kept.values()) + most}}


def walked(recipe: Ours | Theirs, config: Tune) -> tuple[dict[str, int], int, Any]:
    """FLOPs of an iteration, the most bytes alive in its rollout, and a batch of its pairs.

    Both are linear in the number of steps, so one step and two tell all; a batch tells the FLOPs of all updates.
    """
    words, steps = models.prompts(config.prompts_per_rollout), config.num_inference_steps
    flops, live, made = [], [], None
    for n in (1, 2):
        recipe.config = replace(config, num_inference_steps=n)
        with Flops() as counted, Alive() as memory:
            made = recipe.rollout(words, generator(2, "measure"))
        flops.append(counted.total)
        live.append(memory.peak)
    recipe.config = config
    batch: Any = recipe.first(made, config.batch_size)  # type: ignore[arg-type]
    with Flops() as counted:
        recipe.update(batch, generator(3, "measure"))
    updates = len(words) * steps / SHARE / config.batch_size
    found = {"rollout": flops[0] + (steps - 1) * (flops[1] - flops[0]), "update": int(counted.total * updates)}
    return found | {"all": sum(found.values())}, live[0] + (steps - 1) * (live[1] - live[0]), batch


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def ratios(ours: dict[str, Any], published: dict[str, Any]) -> dict[str, Any]:
    return {kind: {k: round(ours[kind][k] / published[kind][k], 4) for k in ours[kind] if published[kind].get(k)}
            for kind in ours}  # fmt: skip


def timed(size: str, device: torch.device, dtype: torch.dtype, repeats: int, side: int | None = None,
          steps: int = 20) -> dict[str, Any]:  # fmt: skip
    """Wall time of an iteration, ours and the published by turns, after both were found equal."""
    config = models.iteration(size, num_inference_steps=steps)
    words = models.prompts(config.prompts_per_rollout)
    ours, theirs = build_both(size, device, dtype, config, side)
    equal = assert_equal(ours, theirs, words)
    best: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, recipe in (("ours", ours), ("published", theirs)):
            found = measure(recipe, words, lambda f: seconds(f, device))
            best[name] = {k: min(v, best.get(name, found)[k]) for k, v in found.items()}
    result: dict[str, Any] = {"size": size, "device": str(device), "dtype": name_of(dtype),
                              "prompts": len(words), "steps": steps, "side": ours.family.latent_shape[-1],
                              "equal": equal}  # fmt: skip
    for name, found in best.items():
        result[name] = {"seconds": found | {"all": sum(found.values())}}
    return result | {"ratio": ratios(result["ours"], result["published"])}
