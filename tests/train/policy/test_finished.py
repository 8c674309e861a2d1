from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.train.policy import load
from lpo.train.policy.finished import adapter, finished, follow
from lpo.train.policy.trainer import PolicyTrainer

PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi"]


class Silent:
    def log(self, step, metrics):
        pass


@pytest.fixture
def config(repository):
    tune = load_params(repository / "params.yaml").tune
    return replace(
        tune, method="nft", prompts=9, prompts_per_rollout=3, num_inference_steps=4, batch_size=6, guidance_scale=1.0,
        lora_rank=2, learning_rate=1e-2, beta=1e-4, num_candidates=2, timestep_range=(0, 1000), validate_every=1,
        checkpoint_every=1,
    )  # fmt: skip


def made(family, reward, config, state, seed=0, grouped=False):
    return finished(family, reward, state, PROMPTS, config, random.generator(seed, "test"), grouped)


def test_the_target_is_the_output_that_gives_the_latent_back(tiny, tiny_reward, config):
    """x0(target) is the same for all rows of one latent, whatever their t and noise."""
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    rows, conditioning = made(tiny, tiny_reward, config, trainer.ema)
    assert len(rows) == 3 * 2 * 2 and len(conditioning) == 3  # prompts, latents each, rows of a latent
    assert rows.prompt.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    x_0 = trainer.transition.pred_x0_eps(rows.target, rows.x_t, rows.t)[0].view(6, 2, -1)
    torch.testing.assert_close(x_0[:, 0], x_0[:, 1], rtol=1e-3, atol=1e-3)
    zero = torch.zeros_like(rows.target)
    slope = trainer.transition.pred_x0_eps(torch.ones_like(zero), zero, rows.t)[0]
    torch.testing.assert_close(slope, rows.slope.view(-1, 1, 1, 1).expand_as(slope))


def test_latents_come_from_the_old_adapter_and_its_output_is_kept(tiny, tiny_reward, config):
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    other = {k: 0.1 * torch.ones_like(v) for k, v in trainer.ema.items()}
    before = {k: v.clone() for k, v in tiny.lora_state().items()}
    base, _ = made(tiny, tiny_reward, config, trainer.ema)
    rows, conditioning = made(tiny, tiny_reward, config, other)
    assert not torch.allclose(rows.target, base.target)
    assert all(torch.equal(v, before[k]) for k, v in tiny.lora_state().items())  # the trained one is back
    with torch.no_grad(), adapter(tiny, other):
        again = tiny.predict(rows.x_t, rows.t, conditioning[rows.prompt])
    torch.testing.assert_close(rows.old, again, rtol=1e-4, atol=1e-5)


def test_the_better_latent_of_a_prompt_is_the_one_that_the_reward_prefers(tiny, tiny_reward, config):
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    rows, _ = made(tiny, tiny_reward, config, trainer.ema)
    r = rows.r.view(3, 2, 2)
    assert torch.equal(r[:, :, 0], r[:, :, 1])  # of all rows of a latent
    torch.testing.assert_close(r[:, 0, 0] + r[:, 1, 0], torch.ones(3))  # differences from a mean of two
    x_0 = trainer.transition.pred_x0_eps(rows.target, rows.x_t, rows.t)[0].view(3, 2, 2, *tiny.latent_shape)[:, :, 0]
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    one = replace(config, nft=replace(config.nft, reward_timesteps=(0, 0, 0)))
    rows, _ = made(tiny, tiny_reward, one, trainer.ema)  # at t = 0 a latent is all but free of noise
    with torch.no_grad():
        scores = [tiny_reward.score(x_0[:, k], torch.zeros(3, dtype=torch.long), text, null) for k in (0, 1)]
    r = rows.r.view(3, 2, 2)[:, :, 0]
    assert ((r[:, 0] > r[:, 1]) == (scores[0] > scores[1])).sum() >= 2


def test_a_group_shares_noise_and_timestep(tiny, tiny_reward, config):
    """The latents, their scores and so the sign of every advantage are those that nft gets from the same generator."""
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, method="dgpo"), seed=0)
    groups, conditioning = made(tiny, tiny_reward, config, trainer.ema, grouped=True)
    rows, _ = made(tiny, tiny_reward, config, trainer.ema)
    assert groups.x_t.shape == (6, 2, *tiny.latent_shape) and groups.prompt.tolist() == [0, 0, 1, 1, 2, 2]
    x_0 = trainer.transition.pred_x0_eps(rows.target, rows.x_t, rows.t)[0].view(3, 2, 2, *tiny.latent_shape)[:, :, 0]
    for k in (0, 1):
        expected = trainer.transition.add_noise(x_0[groups.prompt, k], groups.noise, groups.t)
        torch.testing.assert_close(groups.x_t[:, k], expected, rtol=1e-3, atol=1e-3)
    advantage = groups.advantage.view(3, 2, 2)
    assert torch.equal(advantage[:, 0], advantage[:, 1])
    assert torch.equal(advantage[:, 0].sign(), (rows.r.view(3, 2, 2)[:, :, 0] - 0.5).sign())


def test_an_update_of_dgpo_improves_on_the_better_part_of_a_group(tiny, tiny_reward, config):
    config = replace(config, method="dgpo", learning_rate=1e-3, epochs_per_rollout=5, beta=100.0)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    groups, conditioning, _, _ = trainer.collect(PROMPTS, 0, random.generator(0, "test"))
    before = trainer.loss(groups, conditioning[groups.prompt])[0].detach().mean()
    trainer.update(groups, conditioning, random.generator(0, "update"))
    loss, statistics = trainer.loss(groups, conditioning[groups.prompt])
    assert float(loss.detach().mean()) < float(before) and float(statistics["correct"].mean()) > 0.6


def test_the_old_adapter_follows_slowly():
    old, new = {"a": torch.tensor([0.0, 1.0])}, {"a": torch.tensor([1.0, 1.0])}
    torch.testing.assert_close(follow(old, new, 0.9)["a"], torch.tensor([0.1, 1.0]))


def run(family, reward, config, folder, stop_after=None):
    trainer = PolicyTrainer(family, reward, config, seed=3)
    calls = []

    class Tracker(Silent):
        def log(self, step, metrics):
            if step == stop_after:
                raise KeyboardInterrupt

    def validate():
        calls.append(1)
        return {"validation": sum(float(v.abs().sum()) for v in family.lora_state().values()) / 1e4}

    if stop_after is not None:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(PROMPTS, validate, folder, Tracker())
    else:
        trainer.run(PROMPTS, validate, folder, Tracker())
    return trainer


@pytest.mark.parametrize("stop", [1, 2])
def test_killed_and_resumed_equals_never_interrupted(tiny, tiny_reward, config, tmp_path, stop):
    """The old adapter too, from which the next latents come."""
    families = [copy.deepcopy(tiny) for _ in range(3)]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = run(families[0], tiny_reward, config, tmp_path / "straight")
    run(families[1], tiny_reward, config, tmp_path / "killed", stop_after=stop)
    resumed = run(families[2], tiny_reward, config, tmp_path / "killed")
    for state in ("ema", "old"):
        one, other = getattr(straight, state), getattr(resumed, state)
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert straight.history == resumed.history and straight.updates == resumed.updates > 0
    assert any(not torch.equal(straight.old[k], straight.ema[k]) for k in straight.old)


def test_an_update_moves_towards_the_better_latents(tiny, tiny_reward, config):
    config = replace(config, learning_rate=1e-3, epochs_per_rollout=5)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    rows, conditioning = made(tiny, tiny_reward, config, trainer.ema)

    @torch.no_grad()
    def distance():  # of the predicted x0 from the finished latent, squared
        output = tiny.predict(rows.x_t, rows.t, conditioning[rows.prompt])
        return (rows.slope * (output - rows.target).flatten(1).norm(dim=1)).square()

    loss, before = trainer.loss(rows, conditioning[rows.prompt])[0].detach().mean(), distance()
    trainer.update(rows, conditioning, random.generator(0, "update"))
    assert float(trainer.loss(rows, conditioning[rows.prompt])[0].detach().mean()) < float(loss)
    nearer = before - distance()
    assert float(nearer[rows.r > 0.5].mean()) > float(nearer[rows.r < 0.5].mean())


def test_guidance_is_refused(tiny, config, monkeypatch):
    monkeypatch.setattr(load, "load_reward", lambda *args: SimpleNamespace(space="latent"))
    with pytest.raises(LpoError, match="without guidance"):
        load.policy_trainer(tiny, replace(config, guidance_scale=3.0), 0, False)
