"""Rollout: denoise prompts, K candidates at every step, those chosen that the reward tells apart (LPO, 2502.01051).

    x_s^k = mean(x_t, t, s) + std(t, s) z^k,  k = 1..K        scored by S(p, x_s^k, t)
    a step is kept if tanh(gap / 2) > threshold(t), gap of best and worst; the method says which candidates it keeps
    the next x_t is one of the candidates, drawn uniformly

The policy runs once a step with guidance; every prompt is encoded once, for the policy and for the reward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lpo.config import Lpo
from lpo.diffusion.schedule import ddim_sigmas, ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import Transition
from lpo.families.conditioning import Conditioning
from lpo.families.sd import SD
from lpo.preference.selection import measure, next_index, quantile_threshold, threshold
from lpo.rewards.protocol import Reward
from lpo.train.methods import Select
from lpo.train.steps import Steps, concatenate


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
    family: SD, reward: Reward, select: Select, prompts: list[str], config: Lpo, generator: torch.Generator
) -> tuple[Steps, Conditioning, list[StepStatistics]]:
    """Steps of a batch of prompts, their conditioning, and a line of statistics a step. All noise is `generator`'s."""
    device, count, k = family.device, len(prompts), config.num_candidates
    conditioning, null = family.encode_prompts(prompts), family.encode_prompts([""])
    text, text_null = reward.encode_prompts(prompts).repeat(k), reward.encode_prompts([""])
    transition = family.transition(config.eta)
    timesteps = ddim_timesteps(family.scheduler, config.num_inference_steps)
    ends = previous_timesteps(family.scheduler, config.num_inference_steps)
    sigmas = ddim_sigmas(family.scheduler, config.num_inference_steps)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, family.dtype)

    x = draw(count, *family.latent_shape)
    found: list[Steps] = []
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
        chosen, advantage, keep, gap = select(scores, limit)
        rows = torch.arange(count, device=device)
        x_s = candidates[rows[:, None], chosen]
        log_p = log_probs(transition, x_s, mean, std, config)
        found.append(Steps(x, x_s, advantage, log_p, t, s, rows)[keep])
        statistics.append(StepStatistics(now, count, int(keep.sum()), float(gap.mean()), float(limit)))
        x = candidates[rows, next_index(scores, config.continue_from, generator)]
    return concatenate(found), conditioning, statistics


def _limit(config: Lpo, scores: torch.Tensor, sigmas: torch.Tensor, step: int, t: int) -> float:
    """The threshold of a step; "quantile" keeps the share 1 - low of this step's own pairs."""
    rule = config.threshold
    if rule.schedule == "quantile":
        return float(quantile_threshold(measure(scores.amax(1) - scores.amin(1)), rule.low))
    return float(threshold(sigmas[step], sigmas.min(), sigmas.max(), rule.schedule, rule.low, rule.high, t))


def log_probs(
    transition: Transition, x_s: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, config: Lpo
) -> torch.Tensor:
    """log p (N, M) of M samples a row, x_s (N, M, C, h, w), under one mean (N, C, h, w) and std (N, 1, 1, 1) a row."""
    reduction = config.logprob_reduction
    return torch.stack([transition.log_prob(x, mean, std, reduction) for x in x_s.unbind(1)], dim=1)
