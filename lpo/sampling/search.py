"""Search with a reward while sampling: no training at all, more work a picture.

    per step     x_s = argmax_k S(p, x_s^k, s) over K candidates x_s^k = mean + std z^k
    at the end   x_0 = argmax_n of the reward's ensemble over N trajectories

With K = N = 1 it is `lpo.sampling.generate.sample` bit for bit. A latent reward scores a candidate without denoising
or decoding it, so a step costs one pass of the denoiser whatever K is; a pixel reward costs K more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lpo.config import SamplerSettings
from lpo.errors import LpoError
from lpo.families.family import Family
from lpo.random import normal
from lpo.rewards.ensemble import ensemble_score
from lpo.rewards.protocol import Reward
from lpo.sampling.generate import adapter_at


@dataclass(frozen=True)
class Search:
    """candidates: K, of every step. trajectories: N. timesteps, draws: of the ensemble that chooses at the end."""

    candidates: int
    trajectories: int
    timesteps: Sequence[int]
    draws: int


@dataclass(frozen=True)
class Cost:
    """Pictures through the denoiser and through the reward (guidance counts double), and seconds, of one picture."""

    denoiser: int
    reward: int
    seconds: float


@torch.no_grad()
def search(
    family: Family, reward: Reward, prompt: str, seed: int, settings: SamplerSettings, how: Search
) -> tuple[torch.Tensor, torch.Tensor, Cost]:
    """Latents (1, C, h, w) of the best trajectory, the ensemble's scores of all (N,), and the cost.

    Trajectory n draws all its noise from a generator seeded with seed + n.

    Raises:
        LpoError: where candidates are asked for and eta is 0: without noise they are all the same.
    """
    n, k, eta = how.trajectories, how.candidates, settings.eta
    if k > 1 and eta == 0:
        raise LpoError(
            f"{k} candidates a step are asked for, and at eta 0 they are all the same",
            "params.yaml: evaluate.eta",
            "set it above 0, or search at the end only (--best-of)",
        )
    start = time.perf_counter()
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]

    def draw(count: int) -> torch.Tensor:
        each = [generator for generator in generators for _ in range(count)]
        return normal(each, *family.latent_shape).to(family.device, family.dtype)

    conditioning, null = family.encode_prompts([prompt] * n), family.null()
    text, text_null = reward.encode_prompts([prompt]), reward.encode_prompts([""])
    transition = family.transition(eta)
    schedule = zip(*(times.tolist() for times in family.steps(settings.num_inference_steps)), strict=True)
    x, scored = draw(1), 0
    for now, after in schedule:
        t, s = (torch.full((n,), value, device=family.device) for value in (now, after))
        with adapter_at(family, settings, now):
            prediction = family.guided(x, t, conditioning, null, settings.guidance_scale)
        mean, std = transition.mean_std(prediction, x, t, s)
        if eta == 0:
            x = mean
            continue
        found = mean.repeat_interleave(k, dim=0) + std.repeat_interleave(k, dim=0) * draw(k)
        x = found
        if k > 1:
            scores = reward.score(found, s.clamp_min(0).repeat_interleave(k), text.expand(n * k), text_null)
            best = scores.view(n, k).argmax(1)
            x = found.unflatten(0, (n, k))[torch.arange(n, device=family.device), best]
            scored += n * k
    final = ensemble_score(
        reward, transition, x, how.timesteps, how.draws, text.expand(n), text_null,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    scored += n * len(how.timesteps) * how.draws
    passes = n * settings.num_inference_steps * (1 if settings.guidance_scale == 1 else 2)
    return x[final.argmax()][None], final, Cost(passes, scored, time.perf_counter() - start)
