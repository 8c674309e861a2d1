"""Rollout: denoise prompts, K candidates at every step, pairs of best and worst by the reward (LPO, arXiv 2502.01051).

    x_s^k = mean(x_t, t, s) + std(t, s) z^k,  k = 1..K        scored by S(p, x_s^k, t)
    pair (best, worst) is kept if tanh(gap / 2) > threshold(t)
    the next x_t is one of the candidates, drawn uniformly

The policy runs once a step with guidance; every prompt is encoded once, for the policy and for the reward.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from lpo.config import Lpo
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.preference.selection import measure, next_index, quantile_threshold, select_best_worst, threshold
from lpo.rewards.lrm import LatentRewardModel


@dataclass(frozen=True)
class StepPairs:
    """N pairs: x_t, best, worst (N, C, h, w); t, s (N,) of `Family.steps`; prompt (N,) rows of conditioning."""

    x_t: torch.Tensor
    best: torch.Tensor
    worst: torch.Tensor
    t: torch.Tensor
    s: torch.Tensor
    prompt: torch.Tensor

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: torch.Tensor) -> StepPairs:
        return StepPairs(*(getattr(self, f.name)[index] for f in fields(self)))


@dataclass(frozen=True)
class StepStatistics:
    """What one step of a rollout saw: prompts, pairs kept, mean gap of the scores, threshold of the measure."""

    t: int
    seen: int
    kept: int
    gap: float
    threshold: float


@torch.no_grad()
def rollout(
    family: Family, reward: LatentRewardModel, prompts: list[str], config: Lpo, generator: torch.Generator
) -> tuple[StepPairs, Conditioning, list[StepStatistics]]:
    """Pairs of a batch of prompts, their conditioning, and a line of statistics a step. All noise is `generator`'s."""
    device, count, k = family.device, len(prompts), config.num_candidates
    conditioning, null = family.encode_prompts(prompts), family.null()
    text, text_null = reward.encode_prompts(prompts).repeat(k), reward.encode_prompts([""])
    transition = family.transition(config.eta)
    timesteps, ends = family.steps(config.num_inference_steps)
    sigmas = family.transition(1.0).sigma(timesteps, ends)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, family.dtype)

    x = draw(count, *family.latent_shape)
    found: list[StepPairs] = []
    statistics: list[StepStatistics] = []
    for step, (now, after) in enumerate(zip(timesteps.tolist(), ends.tolist(), strict=True)):
        t = torch.full((count,), now, device=device)
        s = torch.full((count,), after, device=device)
        mean, std = transition.mean_std(family.guided(x, t, conditioning, null, config.guidance_scale), x, t, s)
        in_range = config.timestep_range[0] <= now < config.timestep_range[1]
        if not in_range or not std.any():  # a step without noise has no density and yields no pair
            x = mean + std * draw(*x.shape)
            continue
        candidates = mean[:, None] + std[:, None] * draw(count, k, *family.latent_shape)
        shown = (t if config.reward_timestep == "current" else s.clamp_min(0)).repeat_interleave(k)
        scores = reward.score(candidates.flatten(0, 1), shown, text, text_null).view(count, k)
        limit = _limit(config, scores, sigmas, step, now)
        best, worst, keep, gap = select_best_worst(scores, limit)
        rows = torch.arange(count, device=device)
        pairs = StepPairs(x, candidates[rows, best], candidates[rows, worst], t, s, rows)
        found.append(pairs[keep])
        statistics.append(StepStatistics(int(now), count, int(keep.sum()), float(gap.mean()), float(limit)))
        x = candidates[rows, next_index(scores, config.continue_from, generator)]
    return _concatenate(found), conditioning, statistics


def _limit(config: Lpo, scores: torch.Tensor, sigmas: torch.Tensor, step: int, t: float) -> float:
    """The threshold of a step; "quantile" keeps the share 1 - low of this step's own pairs."""
    rule = config.threshold
    if rule.schedule == "quantile":
        return float(quantile_threshold(measure(scores.amax(1) - scores.amin(1)), rule.low))
    return float(threshold(sigmas[step], sigmas.min(), sigmas.max(), rule.schedule, rule.low, rule.high, t))


def _concatenate(parts: list[StepPairs]) -> StepPairs:
    return StepPairs(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(StepPairs)))
