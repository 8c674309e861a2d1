"""Groups of finished latents: a latent reward scores them without decoding.

    x_0^k ~ the old adapter, without guidance, k = 1..K      R_k = mean over t' of S(p, add_noise(x_0^k, eps', t'), t')
                                                             of a reward of pictures S(p, x_0^k, 0), which decodes

    Diffusion-NFT (arXiv 2509.16117): r_k from R_k among those of the prompt (`optimality`)
        x_t = add_noise(x_0^k, eps, t)     a row a latent, each with an eps and a t ~ U over the range of its own
    DGPO (arXiv 2510.08425): A_k = (R_k - mean) / std over those of the prompt (`group_advantages`)
        x_t^k = add_noise(x_0^k, eps, t)   a row a group: its K latents share eps and t

The old adapter follows the trained one slowly (`follow`). In NFT it holds the training back: every implicit policy of
the loss lies near it. A "prompt" gives about as many noised latents as it has steps in the methods that learn from
steps: each of its K latents is noised round(steps / K) times, at least once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from lpo import random
from lpo.config import Tune
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.preference.advantages import combined, group_advantages, optimality, prompt_advantages
from lpo.preference.selection import check_finite
from lpo.rewards.protocol import Reward
from lpo.rewards.several import SeveralRewards, each_of
from lpo.train.common import distributed
from lpo.train.common.ahead import sent
from lpo.train.common.offload import away
from lpo.train.policy.rollout import consecutive, idle
from lpo.train.policy.steps import Batch, Finished, NoisyGroups, concatenate

State = dict[str, torch.Tensor]


@contextmanager
def adapter(family: Family, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Inside, the adapter has these weights."""
    current = {k: v.detach().clone() for k, v in family.lora_state().items()}
    family.load_lora_state(dict(state))
    try:
        yield
    finally:
        family.load_lora_state(current)


def follow(old: State, current: Mapping[str, torch.Tensor], decay: float) -> State:
    """decay old + (1 - decay) current."""
    return {k: torch.lerp(current[k].detach(), value, decay) for k, value in old.items()}


@torch.no_grad()
def finished(
    family: Family, reward: Reward, old: State, prompts: list[str], config: Tune, generator: torch.Generator,
    grouped: bool,
) -> tuple[Finished | NoisyGroups, Conditioning]:  # fmt: skip
    """K finished latents of each prompt by the old adapter, scored and noised, and the prompts' conditioning.

    grouped: a row is a group under one noise (DGPO); otherwise a row is a latent (NFT).
    `generator` seeds the noise of every prompt, and draws the noise under which all are scored.

    Raises:
        LpoError: if a score is NaN or infinite.
    """
    mine, k, device = distributed.share(torch.arange(len(prompts))), config.num_candidates, family.device
    longest = distributed.largest_share(len(prompts)) * k
    parts = consecutive(len(mine) * k, k * config.micro_batch_size, longest)
    generators = random.of_prompts(generator, len(prompts), mine)
    conditioning = family.encode_prompts(prompts)
    text = conditioning[mine.to(device).repeat_interleave(k)]
    own = [prompts[i] for i in mine.tolist()]  # the rewards' text encoders may be away while they score
    words = [(each.encode_prompts(own), each.encode_prompts([""])) for each in each_of(reward)[0]]
    with adapter(family, old), away(idle(family, reward), device, "rollout"):
        x_0 = _sample(family, text, parts, config, generators)
        scores = _scores(family, reward, words, x_0, parts, config, generator)
        scores = torch.cat(distributed.gathered(scores.view(-1, len(mine), k).cpu()), dim=1)
        check_finite(scores)
        advantages = combined(group_advantages if grouped else prompt_advantages, scores, each_of(reward)[1])
        if isinstance(reward, SeveralRewards):
            reward.note(scores, advantages)
        if grouped:
            advantage = advantages[mine].to(device)
            groups = _noised_groups(family, x_0, advantage, mine, config, generators)
            return _of_all_processes(groups), conditioning
        r = optimality(advantages)[mine].flatten().to(device)
        rows = _noised(family, x_0, r, text, mine, longest, config, generators)
        return _of_all_processes(rows), conditioning


def _of_all_processes(rows: Batch) -> Batch:
    if distributed.count() == 1:
        return rows
    parts = distributed.gathered(rows.to(torch.device("cpu")))
    return concatenate(parts).to(rows.t.device)


def _sample(
    family: Family, text: Conditioning, parts: list[slice], config: Tune, generators: list[torch.Generator]
) -> torch.Tensor:
    shape, transition = (config.num_candidates, *family.latent_shape), family.transition(config.eta).to(family.device)
    x = sent(random.normal(generators, *shape).flatten(0, 1), family.device, family.dtype)
    for now, after in zip(*(times.tolist() for times in family.steps(config.num_inference_steps)), strict=True):
        t, s = (torch.full((len(x),), value, device=family.device) for value in (now, after))
        prediction = torch.cat([family.predict(x[p], t[p], text[p]) for p in parts])
        mean, std = transition.mean_std(prediction, x, t, s)
        noise = random.normal(generators, *shape).flatten(0, 1)
        x = (mean + std * sent(noise, family.device, mean.dtype)).to(family.dtype)
    return x


def _scores(
    family: Family, reward: Reward, words: list[tuple[Conditioning, Conditioning]], x_0: torch.Tensor,
    parts: list[slice], config: Tune, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """(R, N) of N latents x_0 by R rewards: latent ones see the same noise, those of pictures x_0 itself, at t = 0."""
    rows = torch.arange(len(x_0), device=family.device) // config.num_candidates  # x_0 has K latents of each prompt
    rewards, transition = each_of(reward)[0], family.transition(config.eta).to(family.device)
    words = [(text[rows], null) for text, null in words]
    found: list[list[torch.Tensor]] = [[] for _ in rewards]
    zero = torch.zeros(len(x_0), dtype=torch.long, device=x_0.device)
    for at in config.nft.reward_timesteps:
        t = torch.full((len(x_0),), at, device=family.device)
        noise = sent(torch.randn(x_0.shape[1:], generator=generator), x_0.device, x_0.dtype)  # the same for all
        noisy = transition.add_noise(x_0, noise.expand_as(x_0), t)
        for each, (text, null), scores in zip(rewards, words, found, strict=True):
            if each.space == "latent":
                scores.append(torch.cat([each.score(noisy[p], t[p], text[p], null) for p in parts]))
            elif not scores:
                scores.append(torch.cat([each.score(x_0[p], zero[p], text[p], null) for p in parts]))
    return torch.stack([torch.stack(scores).mean(0) for scores in found])


def _noised(
    family: Family, x_0: torch.Tensor, r: torch.Tensor, text: Conditioning, mine: torch.Tensor, longest: int,
    config: Tune, generators: list[torch.Generator],
) -> Finished:  # fmt: skip
    """Every latent at several timesteps, with the old adapter's output there. longest: latents of any process."""
    k, device, transition = config.num_candidates, family.device, family.transition(config.eta).to(family.device)
    times = max(1, round(config.num_inference_steps / k))
    t = _timesteps(generators, k * times, config, transition.num_train_timesteps).to(device)
    noise = random.normal(generators, k * times, *family.latent_shape).flatten(0, 1).to(device, x_0.dtype)
    which = torch.arange(len(x_0), device=device).repeat_interleave(times)
    x_t = transition.add_noise(x_0[which], noise, t)
    parts = consecutive(len(t), config.micro_batch_size, longest * times)
    old = torch.cat([family.predict(x_t[p], t[p], text[which[p]]) for p in parts]).float()
    zero = torch.zeros_like(old)
    offset, _ = transition.pred_x0_eps(zero, x_t.float(), t)  # x0 = offset + slope output
    slope = transition.pred_x0_eps(torch.ones_like(old), zero, t)[0].flatten(1)[:, 0]
    target = (x_0[which].float() - offset) / slope.view(-1, *(1 for _ in offset.shape[1:]))
    prompt = mine.to(device).repeat_interleave(k * times)
    return Finished(x_t, old, target, slope, r[which], t, prompt)


def _noised_groups(
    family: Family, x_0: torch.Tensor, advantage: torch.Tensor, mine: torch.Tensor, config: Tune,
    generators: list[torch.Generator],
) -> NoisyGroups:  # fmt: skip
    """Every group at several timesteps, under one noise each."""
    k, device, transition = config.num_candidates, family.device, family.transition(config.eta).to(family.device)
    times = max(1, round(config.num_inference_steps / k))
    t = _timesteps(generators, times, config, transition.num_train_timesteps).to(device)
    noise = random.normal(generators, times, *family.latent_shape).flatten(0, 1).to(device, x_0.dtype)
    which = torch.arange(len(mine), device=device).repeat_interleave(times)
    groups = x_0.view(-1, k, *family.latent_shape)[which].flatten(0, 1)
    x_t = transition.add_noise(groups, noise.repeat_interleave(k, dim=0), t.repeat_interleave(k))
    return NoisyGroups(x_t.view(-1, k, *family.latent_shape), noise, advantage[which], t, mine.to(device)[which])


def _timesteps(
    generators: list[torch.Generator], count: int, config: Tune, num_train_timesteps: int
) -> torch.Tensor:
    """t ~ U over `timestep_range`, never 0: `count` of each prompt, flat."""
    low, high = max(config.timestep_range[0], 1), min(config.timestep_range[1], num_train_timesteps)
    return torch.cat([torch.randint(low, high, (count,), generator=each) for each in generators])
