"""A scorer of pictures as a reward looks at the decoded prediction of x_0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.images import to_tensor, to_uint8
from lpo.rewards.several import SeveralRewards
from lpo.scorers import embedded
from lpo.train.policy.finished import finished
from lpo.train.policy.load import ScorerModels, policy_trainer, reward_of
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import idle, rollout

ROOT = Path(__file__).parents[2]
PROMPTS = ["a cat left of a taxi", "two red hearts"]


@pytest.fixture(scope="module")
def params(repository):
    found = load_params(repository / "params.yaml")
    return replace(
        found, model=replace(found.model, path=str(ROOT / "data/base"), device="cpu"),
        score=replace(found.score, scorers=str(ROOT / "data/scorers")),
        tune=replace(
            found.tune, method="spo", rewards={"clip": 1.0}, num_inference_steps=3, num_candidates=2, lora_rank=2,
            guidance_scale=1.0, timestep_range=(0, 1000), reward_timestep="next",
            threshold=replace(found.tune.threshold, schedule="constant", low=0.0, high=0.0),
        ),
    )  # fmt: skip


@pytest.fixture
def family(params):
    return load_family(params.model)


def named(params):
    return ScorerModels(params.score, params.evaluate.judge_models)


def clip_of(family, latents, prompts):
    pictures = to_tensor(to_uint8(family.decode(latents)))
    return embedded.load(ROOT / "data/scorers").score(pictures, prompts)["clip"]


@torch.no_grad()
def test_it_is_the_scorer_of_the_decoded_prediction(params, family):
    """Row 0 at t = 501, guided; row 1 at t = 0, where the latents are the picture. Prompts keep their order."""
    several = reward_of(replace(params.tune, guidance_scale=3.0), family, False, named(params))
    reward = several.first
    reward.encode_prompts(["another prompt"])
    text, null = reward.encode_prompts(PROMPTS), reward.encode_prompts([""])
    x = torch.randn(2, *family.latent_shape, generator=torch.Generator().manual_seed(0))
    prediction = family.guided(x, torch.tensor([501, 501]), family.encode_prompts(PROMPTS), family.null(), 3.0)
    x_0, _ = family.transition(1.0).pred_x0_eps(prediction, x, torch.tensor([501, 501]))
    expected = clip_of(family, torch.stack([x_0[0], x[1]]), PROMPTS)
    torch.testing.assert_close(reward.score(x, torch.tensor([501, 0]), text, null), expected, rtol=1e-4, atol=1e-4)
    swapped = reward.score(x.flip(0), torch.tensor([0, 501]), text[[1, 0]], null)
    torch.testing.assert_close(swapped, expected.flip(0), rtol=1e-4, atol=1e-4)


def test_steps_and_finished_latents_are_ranked_by_it(params, family):
    """spo by predictions, nft by the finished pictures themselves; the VAE stays where both need it. lpo is refused."""
    trainer = policy_trainer(family, params.tune, 0, False, named(params))
    reward = trainer.reward
    assert isinstance(reward, SeveralRewards) and reward.space == "pixel"
    assert family.codec.vae not in idle(family, reward)
    generator = random.generator(0, "test")
    steps, _, _ = rollout(family, reward, METHODS["spo"].select, PROMPTS, params.tune, generator)
    text, null = reward.encode_prompts(PROMPTS)[steps.prompt], reward.encode_prompts([""])
    best, worst = (reward.score(x, steps.s.clamp_min(0), text, null) for x in (steps.best, steps.worst))
    assert len(steps) > 0 and bool((best > worst).all()) and reward.figures["clip"]["agreement"] == 1
    config = replace(params.tune, method="nft")
    rows, _ = finished(family, reward, trainer.ema, PROMPTS, config, random.generator(0, "test"), False)
    x_0 = trainer.transition.pred_x0_eps(rows.target, rows.x_t, rows.t)[0]
    x_0, r = (value.unflatten(0, (2, 2, -1))[:, :, 0] for value in (x_0, rows.r))
    scores = torch.stack([clip_of(family, x_0[:, k], PROMPTS) for k in (0, 1)], dim=1)
    assert torch.equal((r[:, 0] > r[:, 1]), scores[:, 0] > scores[:, 1])
    with pytest.raises(LpoError, match="scores pictures"):
        policy_trainer(family, replace(params.tune, method="lpo"), 0, False, named(params))
