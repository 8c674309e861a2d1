"""Rollout: denoise prompts, K candidates at every step, those chosen that the reward tells apart (LPO, 2502.01051).

    x_s^k = mean(x_t, t, s) + std(t, s) z^k,  k = 1..K        scored by S(p, x_s^k, t)
    a step is kept if tanh(gap / 2) > threshold(t), gap of best and worst; the method says which candidates it keeps
    the next x_t is one of the candidates, drawn uniformly

The policy runs once a step with guidance; every prompt is encoded once, for the policy and for the reward.

    look_ahead: candidates are scored by the x_0 that the policy predicts from them (lpo/rewards/look_ahead.py)
    mixgrpo (arXiv 2507.21802): steps outside of a window are deterministic, x_s = mean at eta 0, and not scored; the
        window slides by one step every `tune.window.every` rollouts, from the first step on and round again
    dense_grpo (arXiv 2601.20218): advantages of the gain S(p, x_s^k, s) - S(p, x_t, t), see `step_advantages`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from lpo import random
from lpo.config import Tune, Window
from lpo.diffusion.transitions import Transition, step_gain
from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.preference.advantages import combined, group_advantages, step_advantages
from lpo.preference.selection import check_finite, measure, quantile_threshold, threshold
from lpo.rewards.dina import DinaReward
from lpo.rewards.look_ahead import LookAhead
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.protocol import Reward
from lpo.rewards.several import SeveralRewards, each_of
from lpo.train.common import distributed
from lpo.train.common.ahead import sent
from lpo.train.common.offload import away
from lpo.train.policy.methods import METHODS, Select
from lpo.train.policy.statistics import StepStatistics
from lpo.train.policy.steps import Steps, concatenate

PlannedStep = tuple[int, float, float, bool]  # index, t, s, scored


@dataclass(frozen=True)
class Trajectory:
    """All that a rollout made, n scored steps of B prompts, still on the device: nothing is left out yet.

    steps: n B rows, step after step. scores: (n, B, K), what decides: raw scores, or of several rewards the weighted
    mean of their group advantages. by_reward: (n, R, B, K), raw scores. keep, gap: (n, B). limit: (n,), thresholds.
    Of several processes each has its own share of the prompts.
    """

    steps: Steps
    scores: torch.Tensor
    by_reward: torch.Tensor
    keep: torch.Tensor
    gap: torch.Tensor
    limit: torch.Tensor


def rollout(
    family: Family, reward: Reward, select: Select, prompts: list[str], config: Tune, generator: torch.Generator,
    index: int = 0,
) -> tuple[Steps, Conditioning, list[StepStatistics]]:  # fmt: skip
    """Steps of a batch of prompts, their conditioning, and a line of statistics a step.

    `generator` seeds the noise of every prompt.

    index: which rollout of the training it is, for a window that slides.

    Raises:
        LpoError: if a score is NaN or infinite.
    """
    made, conditioning = explore(family, reward, select, prompts, config, generator, index)
    raw = torch.cat(distributed.gathered(made.by_reward.cpu()), dim=-2)
    check_finite(raw)
    if isinstance(reward, SeveralRewards):
        reward.note(raw.transpose(0, 1), torch.cat(distributed.gathered(made.scores.cpu()), dim=-2))
    keep, gap = (torch.cat(distributed.gathered(x.cpu()), dim=1) for x in (made.keep, made.gap))
    times = made.steps.t.view(keep.shape[0], -1)[:, 0].tolist()
    statistics = [
        StepStatistics(int(t), len(prompts), int(k.sum()), float(g.mean()), limit)
        for t, k, g, limit in zip(times, keep, gap, made.limit.tolist(), strict=True)
    ]
    return _together(made.steps[made.keep.flatten()]), conditioning, statistics


def _together(steps: Steps) -> Steps:
    """The steps of all processes, in the order in which one process would have made them."""
    if distributed.count() == 1:
        return steps
    parts = distributed.gathered(steps.to(torch.device("cpu")))
    joined = concatenate(parts)
    order = sorted(range(len(joined)), key=lambda i: (-float(joined.t[i]), int(joined.prompt[i])))
    return joined[torch.tensor(order, dtype=torch.long)].to(steps.t.device)


@torch.no_grad()
def explore(
    family: Family, reward: Reward, select: Select, prompts: list[str], config: Tune, generator: torch.Generator,
    index: int = 0,
) -> tuple[Trajectory, Conditioning]:  # fmt: skip
    """All steps of this process's share of a batch of prompts, and the conditioning of the whole batch.

    The loop reads nothing back from the device, so that the host runs ahead of it: all noise is drawn beforehand, and
    what depends on scores (which pair is kept) is marked, not carried out. However many prompts there are, the model
    and the reward are given K micro_batch_size rows at a time: without gradients these take less than an update's.
    Where memory is short, what only prompts need is away meanwhile (`idle`).
    """
    device, k, method = family.device, config.num_candidates, METHODS[config.method]
    mine = distributed.share(torch.arange(len(prompts)))
    rows, count = mine.to(device), len(mine)
    conditioning, null = family.encode_prompts(prompts), family.null()
    rewards, weights = each_of(reward)
    transition, unused = family.transition(config.eta).to(device), idle(family, reward)
    if config.reward_timestep == "look_ahead":
        times = config.nft.reward_timesteps
        eps = torch.randn((len(times), *family.latent_shape), generator=generator).to(device, family.dtype)
        rewards = [LookAhead(r, family, transition, null, config.guidance_scale, times, eps) for r in rewards]
    texts = [(conditioning if _is_own(r, family) else r.encode_prompts(prompts))[rows].repeat(k) for r in rewards]
    words = list(zip(rewards, texts, [r.encode_prompts([""]) for r in rewards], strict=True))
    weights = weights.to(device)
    outside = family.transition(0.0).to(device) if method.window else transition  # of steps that are not scored
    steps = plan(family, config)
    if method.window:
        steps = within_window(steps, config.window, index)
    generators = random.of_prompts(generator, len(prompts), mine)
    x, draws = _draw(family, generators, config, [scored for *_, scored in steps])
    starts, ends = family.steps(config.num_inference_steps)
    sigmas = family.transition(1.0).sigma(starts, ends)
    own_text, every = conditioning[rows], torch.arange(count, device=device)
    longest = distributed.largest_share(len(prompts))
    parts, scored_parts = (consecutive(count * n, k * config.micro_batch_size, longest * n) for n in (1, k))

    def score(latents: torch.Tensor, t: torch.Tensor, every: int, parts: list[slice]) -> torch.Tensor:
        """(R, N) of N rows, which belong to every so many rows of the texts."""
        found = [[r.score(latents[p], t[p], text[::every][p], null) for p in parts] for r, text, null in words]
        return torch.stack([torch.cat(scores) for scores in found])

    found: list[Steps] = []
    outcomes: list[tuple[torch.Tensor, ...]] = []
    told = {"current": lambda t, s: t, "next": lambda t, s: s.clamp_min(0), "look_ahead": lambda t, s: s}
    with away(unused, device, "rollout"):
        for (step, now, after, scored), (noise, following) in zip(steps, draws, strict=True):
            t = torch.full((count,), now, device=device)
            s = torch.full((count,), after, device=device)
            prediction = torch.cat([family.guided(x[p], t[p], own_text[p], null, config.guidance_scale) for p in parts])
            mean, std = (transition if scored else outside).mean_std(prediction, x, t, s)
            if not scored:
                x = mean + std * noise
                continue
            candidates = mean[:, None] + std[:, None] * noise
            shown = told[config.reward_timestep](t, s).repeat_interleave(k)
            raw = score(candidates.flatten(0, 1), shown, 1, scored_parts).view(-1, count, k)
            scores = raw[0] if len(rewards) == 1 else combined(group_advantages, raw, weights)
            limit = _limit(config, scores, sigmas, step, now, starts)
            chosen, advantage, keep, gap = select(scores, limit)
            if method.gain:
                gains = raw - score(x, t, k, parts)[:, :, None]
                advantage = combined(partial(_step_advantages, mine=mine), gains, weights).gather(1, chosen)
            elif len(rewards) > 1:  # normalised already, each on its own
                advantage = scores.gather(1, chosen)
            x_s = candidates[every[:, None], chosen]
            found.append(Steps(x, x_s, advantage, log_probs(transition, x_s, mean, std, config), t, s, rows))
            outcomes.append((scores, raw, keep, gap, limit))
            x = candidates[every, following if config.continue_from == "random" else scores.argmax(dim=1)]
    stacked = [torch.stack(column) for column in zip(*outcomes, strict=True)]
    return Trajectory(concatenate(found), *stacked), conditioning


def _is_own(reward: Reward, family: Family) -> bool:
    """Whether it is an adapter of the policy's denoiser, so that it reads the policy's own conditioning."""
    return isinstance(reward, LatentRewardModel | DinaReward) and reward.backbone.denoiser is family.denoiser


def _step_advantages(gains: torch.Tensor, mine: torch.Tensor) -> torch.Tensor:
    """`step_advantages` over the prompts of all processes; the rows of this one's."""
    if distributed.count() == 1:
        return step_advantages(gains)
    return step_advantages(torch.cat(distributed.gathered(gains.cpu())))[mine].to(gains.device)


def within_window(steps: list[PlannedStep], window: Window, index: int) -> list[PlannedStep]:
    """The steps, scored only where the window of rollout `index` lies over those that could be.

    It starts at the first one, moves on by one every `window.every` rollouts, and returns to the first from the end.
    """
    places = [i for i, (*_, scored) in enumerate(steps) if scored]
    first = (index // window.every) % max(len(places) - window.steps + 1, 1)
    inside = set(places[first : first + window.steps])
    return [(step, t, s, i in inside) for i, (step, t, s, _) in enumerate(steps)]


def idle(family: Family, reward: Reward) -> list[torch.nn.Module]:
    """What neither the steps of a rollout nor updates run: the text encoders of the policy and of a latent reward, and
    the VAE. A reward of pixels decodes, so then the VAE stays."""
    rewards, encoders = each_of(reward)[0], list(family.modules().values())[1:]
    latent = [each for each in rewards if isinstance(each, LatentRewardModel | DinaReward)]
    encoders += [part for each in latent for part in list(each.backbone.modules().values())[1:]]
    if len(latent) < len(rewards):
        return encoders
    assert family.codec.vae is not None
    return [*encoders, family.codec.vae]


def consecutive(count: int, size: int, longest: int) -> list[slice]:
    """Rows 0 to `count` in parts of `size`, the last one perhaps smaller.

    There are as many parts as `longest` rows have: where another process has a part more, the last row is one too.
    """
    starts = [min(start, count - 1) for start in range(0, longest, size)]
    return [slice(*ends) for ends in zip(starts, [*starts[1:], count], strict=True)]


def plan(family: Family, config: Tune) -> list[PlannedStep]:
    """(index, t, s, scored) of every step. A step without noise has no density and yields no pair.

    Raises:
        LpoError: if no step is left.
    """
    starts, ends = family.steps(config.num_inference_steps)
    low, high = config.timestep_range
    scored = (family.transition(config.eta).sigma(starts, ends) > 0) & (low <= starts) & (starts < high)
    if not scored.any():
        what = f"none of the {len(starts)} steps, from t = {int(starts[0])} to {int(starts[-1])}, lies in the range"
        raise LpoError(what, "params.yaml: tune.timestep_range", "widen it")
    return list(zip(range(len(starts)), starts.tolist(), ends.tolist(), scored.tolist(), strict=True))


def mean_gain(family: Family, config: Tune) -> float:
    """The mean of `step_gain` over the scored steps of a rollout: what balanced weights divide by a step's own."""
    t, s = (torch.tensor([row[i] for row in plan(family, config) if row[3]]) for i in (1, 2))
    return float(step_gain(family.transition(config.eta).to(torch.device("cpu")), t, s).mean())


def _draw(
    family: Family, generators: list[torch.Generator], config: Tune, scored: list[bool]
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """x_T (B, C, h, w); for each step its noise, (B, K, C, h, w) or unscored (B, C, h, w), and who goes on, (B,).

    All numbers of a prompt are those of its own generator, one of the B.
    """
    k, shape = config.num_candidates, family.latent_shape

    def normal(*shape: int) -> torch.Tensor:
        return sent(random.normal(generators, *shape).to(family.dtype), family.device)

    x = normal(*shape)
    draws = []
    for has_pairs in scored:
        noise = normal(k, *shape) if has_pairs else normal(*shape)
        if has_pairs and config.continue_from == "random":
            following = torch.cat([torch.randint(k, (1,), generator=each) for each in generators])
        else:
            following = torch.zeros(len(generators), dtype=torch.long)
        draws.append((noise, sent(following, family.device)))
    return x, draws


def _limit(
    config: Tune, scores: torch.Tensor, sigmas: torch.Tensor, step: int, t: float, times: torch.Tensor
) -> torch.Tensor:
    """The threshold of a step, (); "quantile" keeps the share 1 - low of this step's own pairs."""
    rule = config.threshold
    if rule.schedule == "quantile":
        gap = scores.amax(1) - scores.amin(1)
        if distributed.count() > 1:  # the quantile is that of all prompts
            gap = torch.cat(distributed.gathered(gap.cpu())).to(gap.device)
        return quantile_threshold(measure(gap), rule.low)
    limit = threshold(
        sigmas[step], sigmas.min(), sigmas.max(), rule.schedule, rule.low, rule.high, t,
        t_min=times.min(), t_max=times.max(),
    )  # fmt: skip
    return torch.full((), float(limit), device=scores.device)


def log_probs(
    transition: Transition, x_s: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, config: Tune
) -> torch.Tensor:
    """log p (N, M) of M samples a row, x_s (N, M, C, h, w), under one mean (N, C, h, w) and std (N, 1, 1, 1) a row."""
    reduction = config.logprob_reduction
    return torch.stack([transition.log_prob(x, mean, std, reduction) for x in x_s.unbind(1)], dim=1)
