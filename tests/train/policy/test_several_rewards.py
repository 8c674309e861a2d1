"""Several rewards at once, through the rollout, the trainer and a resumed training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.rewards.several import SeveralRewards
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import explore, rollout
from lpo.train.policy.trainer import PolicyTrainer

PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi"]


class Brightness:
    """A reward of wide units that reads the latents themselves: 1000 times their mean."""

    space = "latent"

    def __init__(self, reward, sign=1):
        self.encode_prompts, self.sign = reward.encode_prompts, sign

    def score(self, latents, t, conditioning, null):
        return self.sign * 1000 * latents.float().flatten(1).mean(1)


class Recorder:
    def __init__(self, stop_after=None):
        self.stop_after, self.seen = stop_after, []

    def log(self, step, metrics):
        self.seen.append(metrics)
        if step == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def config(repository):
    tune = load_params(repository / "params.yaml").tune
    return replace(
        tune, prompts=9, prompts_per_rollout=3, num_inference_steps=3, batch_size=4, guidance_scale=1.0, lora_rank=2,
        learning_rate=1e-2, beta=20.0, num_candidates=4, timestep_range=(0, 1000), timestep_weights="none",
        validate_every=1, checkpoint_every=1, threshold=replace(tune.threshold, schedule="constant", low=0.0, high=0.0),
    )  # fmt: skip


@pytest.fixture
def several(tiny_reward):
    return SeveralRewards({"lrm": tiny_reward, "bright": Brightness(tiny_reward)}, {"lrm": 2.0, "bright": 1.0})


def normalised(scores):
    """(x - mean) / std along the last dimension, by its definition."""
    return (scores - scores.mean(-1, keepdim=True)) / scores.std(-1, keepdim=True, correction=0)


@pytest.mark.parametrize("method", ["lpo", "grpo", "dense_grpo"])
def test_steps_are_chosen_by_the_weighted_mean_of_normalised_scores(tiny, several, config, method):
    config = replace(config, method=method)
    select = METHODS[method].select
    made, _ = explore(tiny, several, select, PROMPTS, config, random.generator(0, "test"))
    raw = made.by_reward
    assert raw.shape == (3, 2, 3, 4)  # steps, rewards, prompts, candidates
    total = (2 * normalised(raw[:, 0]) + normalised(raw[:, 1])) / 3
    torch.testing.assert_close(made.scores, total, rtol=1e-3, atol=1e-3)
    ranked = total.sort(dim=2, descending=True)
    if method == "lpo":  # best and worst, kept by the gap of what decides
        values = ranked.values.flatten(0, 1)
        torch.testing.assert_close(made.gap.flatten(), values[:, 0] - values[:, -1], rtol=1e-3, atol=1e-3)
        place = ranked.indices[:, :, 0].flatten()  # the latent mean tells which candidate was taken
        mean = made.steps.best.flatten(1).mean(1) * 1000
        torch.testing.assert_close(mean, raw[:, 1].flatten(0, 1).gather(1, place[:, None])[:, 0], rtol=1e-3, atol=1e-2)
    if method == "grpo":  # advantages are not normalised a second time
        torch.testing.assert_close(made.steps.advantage, ranked.values.flatten(0, 1), rtol=1e-3, atol=1e-3)
    if method == "dense_grpo":
        text, null = several.encode_prompts(PROMPTS), several.encode_prompts([""])
        for step, rows in enumerate(torch.arange(9).split(3)):
            at = made.steps[rows]
            with torch.no_grad():
                before = torch.stack([r.score(at.x_t, at.t, text, null) for r in several.rewards.values()])
            gain = raw[step] - before[:, :, None]
            gain = (gain - gain.mean((1, 2), keepdim=True)) / gain.std((1, 2), keepdim=True, correction=0)
            expected = ((2 * gain[0] + gain[1]) / 3).gather(1, ranked.indices[step])
            torch.testing.assert_close(at.advantage, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("sign", "agreement"), [(1, 1.0), (-1, 0.0)])
def test_a_reward_says_how_often_it_agrees_with_the_choice(tiny, tiny_reward, config, sign, agreement):
    """The heavier of two opposite rewards decides every pair, so it always agrees and the other one never does."""
    rewards = {"heavy": Brightness(tiny_reward), "light": Brightness(tiny_reward, sign)}
    several = SeveralRewards(rewards, {"heavy": 3.0, "light": 1.0})
    rollout(tiny, several, METHODS["lpo"].select, PROMPTS, config, random.generator(0, "test"))
    assert several.figures["heavy"]["agreement"] == 1 and several.figures["light"]["agreement"] == agreement
    assert several.figures["light"]["score"] == pytest.approx(sign * several.figures["heavy"]["score"])


def test_one_reward_with_a_weight_is_the_reward_alone_bit_for_bit(tiny, tiny_reward, config):
    one = SeveralRewards({"lrm": tiny_reward}, {"lrm": 0.3})
    pairs = [
        rollout(tiny, each, METHODS["lpo"].select, PROMPTS, config, random.generator(0, "test"))[0]
        for each in (tiny_reward, one)
    ]
    assert all(torch.equal(getattr(pairs[0], name), getattr(pairs[1], name)) for name in ("x_t", "x_s", "t"))


@pytest.mark.parametrize("method", ["lpo", "nft", "dgpo"])
def test_killed_and_resumed_equals_never_interrupted(tiny, several, config, tmp_path, method):
    """With the figures of every reward in the history and in the tracker."""
    config = replace(config, method=method, num_candidates=2, beta=1e-4 if method == "nft" else 20.0)
    found = []
    for name, stop in (("straight", None), ("killed", 1), ("killed", None)):
        (tmp_path / name).mkdir(exist_ok=True)
        trainer, tracker = PolicyTrainer(copy.deepcopy(tiny), copy.copy(several), config, seed=1), Recorder(stop)
        trainer.reward.figures = {}  # a process that starts anew knows none
        try:
            trainer.run(PROMPTS, lambda: {"validation": 1.0}, tmp_path / name, tracker)
        except KeyboardInterrupt:
            continue
        found.append((trainer, tracker))
    (straight, tracker), (resumed, _) = found
    assert straight.history == resumed.history and straight.updates == resumed.updates > 0
    assert all(torch.equal(straight.ema[k], resumed.ema[k]) for k in straight.ema)
    assert any(bool(v.any()) for k, v in straight.ema.items() if "lora_B" in k)  # it moved
    for entry in straight.history:
        assert set(entry["rewards"]) == {"lrm", "bright"}
        assert all(0 <= row["agreement"] <= 1 for row in entry["rewards"].values())
    assert tracker.seen[0]["tune/reward/bright/score"] == straight.history[0]["rewards"]["bright"]["score"]
