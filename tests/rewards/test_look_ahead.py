"""A reward that looks ahead scores the x_0 that the policy predicts."""

from __future__ import annotations

from dataclasses import replace

import torch

from lpo import random
from lpo.config import load_params
from lpo.families import sd
from lpo.rewards.ensemble import ensemble_score
from lpo.rewards.look_ahead import LookAhead
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import rollout

PROMPTS = ["a cat", "two dogs at night"]
TIMES = (50, 250)


def looking_ahead(tiny, tiny_reward, scale=3.0):
    noise = torch.randn(2, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    transition = tiny.transition(1.0)
    return LookAhead(tiny_reward, tiny, transition, tiny.null(), scale, TIMES, noise), transition


@torch.no_grad()
def test_it_scores_the_predicted_x0_as_the_ensemble_scores_a_finished_one(tiny, tiny_reward):
    """Row 0 lies at t = 501, row 1 after the last step, where it is x_0 already. The noise is the ensemble's."""
    reward, transition = looking_ahead(tiny, tiny_reward)
    x = torch.randn(2, *tiny.latent_shape, generator=torch.Generator().manual_seed(1))
    text, null = reward.encode_prompts(PROMPTS), reward.encode_prompts([""])
    t = torch.tensor([501, 501])
    prediction = tiny.guided(x, t, tiny.encode_prompts(PROMPTS), tiny.null(), 3.0)
    x_0 = torch.stack([transition.pred_x0_eps(prediction, x, t)[0][0], x[1]])
    words, empty = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    generator = torch.Generator().manual_seed(0)
    reward.noise.copy_(torch.stack([torch.randn(tiny.latent_shape, generator=generator) for _ in TIMES]))
    found = reward.score(x, torch.tensor([501, -1]), text, null)
    generator = torch.Generator().manual_seed(0)
    expected = ensemble_score(tiny_reward, transition, x_0, TIMES, 1, words, empty, generator)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_rollout_of_few_steps_learns_from_all_but_the_last(tiny, tiny_reward, repository, tiny_base):
    """Four steps of LCM yield three: the last one has no density. Chosen and rejected are ranked by what is ahead."""
    few = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, sampler="lcm")
    tune = load_params(repository / "params.yaml").tune
    config = replace(
        tune, num_inference_steps=4, guidance_scale=1.0, num_candidates=3, reward_timestep="look_ahead",
        timestep_range=(0, 1000), threshold=replace(tune.threshold, schedule="constant", low=0.0, high=0.0),
        nft=replace(tune.nft, reward_timesteps=(50, 50, 50)),
    )  # fmt: skip
    generator = random.generator(0, "test")
    steps, _, seen = rollout(few, tiny_reward, METHODS["lpo"].select, PROMPTS, config, generator)
    assert [row.t for row in seen] == few.steps(4)[0].tolist()[:3] and len(steps) == 6
    assert bool(steps.log_p.isfinite().all())
    noise = torch.randn(3, *few.latent_shape, generator=random.generator(0, "test"))
    reward = LookAhead(tiny_reward, few, few.transition(1.0), few.null(), 1.0, config.nft.reward_timesteps, noise)
    text, null = reward.encode_prompts(PROMPTS), reward.encode_prompts([""])
    with torch.no_grad():
        best, worst = (reward.score(x, steps.s, text[steps.prompt], null) for x in (steps.best, steps.worst))
    assert bool((best > worst).all())
