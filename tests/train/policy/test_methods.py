from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.train.policy.methods import (
    METHODS,
    best_and_worst,
    finished_loss,
    group_loss,
    pair_loss,
    stored_pair_loss,
    whole_group,
)
from lpo.train.policy.rollout import explore, plan, rollout, within_window
from lpo.train.policy.steps import Finished, Steps
from lpo.train.policy.trainer import PolicyTrainer

PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi"]


@pytest.fixture
def config(repository):
    lpo = load_params(repository / "params.yaml").tune
    return replace(
        lpo, prompts=6, prompts_per_rollout=3, num_inference_steps=3, batch_size=4, guidance_scale=3.0, lora_rank=2,
        learning_rate=1e-2, beta=20.0, num_candidates=4, timestep_range=(0, 1000), timestep_weights="none",
        validate_every=1,
        threshold=replace(lpo.threshold, schedule="constant", low=0.0, high=0.0),
    )  # fmt: skip


def steps_of(advantage: torch.Tensor, log_p: torch.Tensor) -> Steps:
    n, m = log_p.shape
    x, t = torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.long)
    return Steps(x, x[:, None].expand(n, m, 1, 1, 1), advantage, log_p, t, t, t)


def run(family, reward, config, folder):
    folder.mkdir()
    trainer = PolicyTrainer(family, reward, config, seed=1)
    values = iter(range(1, 9))
    trainer.run(PROMPTS, lambda: {"validation": float(next(values))}, folder, Silent())
    return trainer


class Silent:
    def log(self, step, metrics):
        pass


# selection


def test_a_pair_is_the_best_and_the_worst() -> None:
    found = best_and_worst(torch.tensor([[1.0, 4.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.1, 0.2, 0.3]]), 0.3)
    assert found.chosen.tolist()[0] == [1, 3] and found.chosen.tolist()[2] == [3, 0]
    assert found.keep.tolist() == [True, False, False]  # an exact tie; tanh(0.15) = 0.149 is below 0.3
    assert found.advantage.tolist() == [[1, -1]] * 3
    torch.testing.assert_close(found.gap, torch.tensor([4.0, 0.0, 0.3]))


def test_a_group_is_all_candidates_by_falling_score() -> None:
    """Scores 1, 4, 2, 1: mean 2, variance (1 + 4 + 0 + 1) / 4 = 1.5."""
    found = whole_group(torch.tensor([[1.0, 4.0, 2.0, 1.0]]), 0.0)
    assert found.chosen.tolist() == [[1, 2, 0, 3]] and found.keep.tolist() == [True]
    torch.testing.assert_close(found.advantage, torch.tensor([[2.0, 0.0, -1.0, -1.0]]) / math.sqrt(1.5))


# losses, from log densities to a number by hand, and their gradients in double precision


def test_pair_loss_by_hand(config) -> None:
    """beta 20; log ratios 0.02 and -0.03: -log sigmoid(20 * 0.05) = log(1 + 1 / e)."""
    policy = torch.tensor([[-1.0 + 0.02, -2.0 - 0.03]], dtype=torch.float64)
    reference = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    loss, found = pair_loss(policy, reference, steps_of(torch.ones(1, 2), policy), config)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)))
    assert found["correct"].item() == 1 and found["clipped"].item() == 0


def test_group_loss_by_hand(config) -> None:
    """eps 0.1, beta 2. Ratios to the sampling policy, here also the reference, 1.05 and 1.2, advantages 1 and -1.

    Losses: -1.05 + 2 KL(1.05) and 1.2 + 2 KL(1.2), KL = 1/r + log r - 1 (its sample estimate with r = p / p_ref).
    """
    ratio = torch.tensor([[1.05, 1.2]], dtype=torch.float64)
    old = torch.tensor([[-3.0, -4.0]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    batch = steps_of(advantage, old)
    loss, found = group_loss(old + ratio.log(), old, batch, replace(config, beta=2.0))
    kl = [1 / r + math.log(r) - 1 for r in (1.05, 1.2)]
    assert loss.item() == pytest.approx((-1.05 + 2 * kl[0] + 1.2 + 2 * kl[1]) / 2)
    assert found["kl"].item() == pytest.approx(sum(kl) / 2)
    assert found["correct"].item() == 0  # the worst one was raised more
    # 1.5 is beyond 1.1 in its own favour: the clamp holds it, and no gradient is left but that of the KL.
    policy = (old + torch.tensor([[1.5, 1.0]], dtype=torch.float64).log()).requires_grad_()
    loss, found = group_loss(policy, old, batch, replace(config, beta=1e-12))
    loss.sum().backward()
    assert found["clipped"].item() == 0.5 and policy.grad is not None
    torch.testing.assert_close(policy.grad, torch.tensor([[0.0, 0.5]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_stored_pair_loss_by_hand(config) -> None:
    """beta 20: errors 0.10 and 0.40 where the reference had 0.20 and 0.40: -log sigmoid(-10 (-0.1)) = log(1 + 1/e)."""
    policy, reference = torch.tensor([[-0.1, -0.4]]), torch.tensor([[-0.2, -0.4]])
    loss, found = stored_pair_loss(policy.double(), reference.double(), None, config)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)
    assert found["correct"].item() == 1 and found["clipped"].item() == 0


def latents_of(old: torch.Tensor, target: torch.Tensor, slope: torch.Tensor, r: torch.Tensor) -> Finished:
    t = torch.zeros(len(r), dtype=torch.long)
    return Finished(old, old, target, slope, r, t, t)


def test_finished_loss_by_hand(config) -> None:
    """Two pixels, slope 2, target 0, old (1, 1), prediction (2, 1), b 1, r 3/4; the base says (1, 1), beta 0.1.

    v+ = prediction: e+ = (4, 2), |e+|^2 = 10, w+ = 3.
    v- = 2 old - prediction = (0, 1): e- = (0, 2), |e-|^2 = 2, w- = 1.
    |prediction - base|^2 = 1/2.
    """
    numbers = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64).view(3, 1, 1, 1, 2)
    prediction, old, target = numbers
    batch = latents_of(old, target, torch.tensor([2.0], dtype=torch.float64), torch.tensor([0.75], dtype=torch.float64))
    loss, found = finished_loss(prediction, old, batch, replace(config, beta=0.1))
    assert loss.item() == pytest.approx(0.75 * 10 / 3 + 0.25 * 2 / 1 + 0.1 * 0.5)
    assert found["distance"].item() == 0.5 and found["correct"].item() == 0  # it moved away from a good latent
    # b 1/2: v+ = (1.5, 1), e+ = (3, 2), 6.5 / 2.5; v- = (0.5, 1), e- = (1, 2), 2.5 / 1.5; all over b.
    half = replace(config, beta=0.1, nft=replace(config.nft, mixing=0.5))
    assert finished_loss(prediction, old, batch, half)[0].item() == pytest.approx(
        (0.75 * 6.5 / 2.5 + 0.25 * 2.5 / 1.5) / 0.5 + 0.05
    )


def test_a_good_latent_attracts_and_a_bad_one_repels(config) -> None:
    """At prediction = old the gradient is that of r - (1 - r): towards the target at r 1, away at 0, none at 1/2."""
    old, target = torch.ones(3, 1, 1, 2), torch.zeros(3, 1, 1, 2)
    prediction = old.clone().requires_grad_()
    batch = latents_of(old, target, torch.ones(3), torch.tensor([1.0, 0.5, 0.0]))
    finished_loss(prediction, old, batch, config)[0].sum().backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad.flatten(1), torch.tensor([[1.0, 1.0], [0.0, 0.0], [-1.0, -1.0]]))


def test_finished_gradcheck(config) -> None:
    """w is detached, so the loss is compared at w held fixed: divided by what it is where the gradient is taken."""
    generator = torch.Generator().manual_seed(0)
    prediction, reference, old, target = torch.randn(4, 3, 2, 2, 2, generator=generator, dtype=torch.float64)
    slope, r = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
    prediction.requires_grad_()
    r = r.clamp(max=1)

    def fixed(x: torch.Tensor) -> torch.Tensor:
        def part(v: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            e, w = ((slope.view(3, 1, 1, 1) * (y - target)).flatten(1) for y in (v, at))
            return e.square().mean(1) / w.abs().mean(1)

        now = prediction.detach()
        return (
            r * part(x, now)
            + (1 - r) * part(2 * old - x, 2 * old - now)
            + 0.3 * (x - reference).square().flatten(1).mean(1)
        )

    loss, _ = finished_loss(prediction, reference, latents_of(old, target, slope, r), replace(config, beta=0.3))
    torch.testing.assert_close(loss, fixed(prediction))
    found, expected = (torch.autograd.grad(x.sum(), prediction)[0] for x in (loss, fixed(prediction)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "nft"])
def test_gradcheck(name, config) -> None:
    """Of kto where Q is 0 and stays there: it carries no gradient, which a difference of losses would see."""
    generator = torch.Generator().manual_seed(0)
    width = 4 if "grpo" in name or name == "dgpo" else 2
    policy, reference, old, advantage = 0.02 * torch.randn(4, 5, width, generator=generator, dtype=torch.float64)
    batch = steps_of(advantage * 50, old)
    policy = (policy - 0.2 if name == "kto" else policy).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: METHODS[name].loss(x, reference, batch, config)[0], (policy,))


# the whole of a method


def test_spo_with_the_latent_reward_is_lpo_bit_for_bit(tiny, tiny_reward, config, tmp_path) -> None:
    found = {}
    for name in ("lpo", "spo"):
        chosen = replace(config, method=name)
        pairs, _, _ = rollout(tiny, tiny_reward, METHODS[name].select, PROMPTS, chosen, random.generator(0, "test"))
        trainer = run(copy.deepcopy(tiny), tiny_reward, chosen, tmp_path / name)
        found[name] = pairs, trainer
    (pairs, lpo), (others, spo) = found["lpo"], found["spo"]
    assert len(pairs) > 0
    for field in ("x_t", "x_s", "t", "s", "prompt"):
        assert torch.equal(getattr(pairs, field), getattr(others, field))
    assert lpo.history == spo.history and lpo.updates == spo.updates > 0
    assert all(torch.equal(lpo.ema[k], spo.ema[k]) for k in lpo.ema)
    assert any(bool(v.any()) for k, v in lpo.ema.items() if "lora_B" in k)  # it moved


def explored(tiny, tiny_reward, config, index=0):
    select = METHODS[config.method].select
    return explore(tiny, tiny_reward, select, PROMPTS, config, random.generator(0, "test"), index)


def test_the_window_slides_and_its_outside_is_deterministic(tiny, tiny_reward, config) -> None:
    """Four steps, a window of one: rollouts 0 and 1 learn at the first step, rollout 2 at the second one.

    x_t of rollout 2 lies at the end of one deterministic step from the noise that x_T was drawn from.
    """
    config = replace(config, method="mixgrpo", num_inference_steps=4, window=replace(config.window, steps=1, every=2))
    starts, ends = tiny.steps(4)
    found = [explored(tiny, tiny_reward, config, index)[0].steps for index in (0, 1, 2, 8)]
    assert [steps.t.unique().tolist() for steps in found] == [[int(starts[i])] for i in (0, 0, 1, 0)]
    first, second = found[0], found[2]
    assert torch.equal(first.x_t, found[1].x_t)
    conditioning, null = tiny.encode_prompts(PROMPTS), tiny.null()
    with torch.no_grad():
        prediction = tiny.guided(first.x_t, first.t, conditioning, null, config.guidance_scale)
        x, std = tiny.transition(0.0).mean_std(prediction, first.x_t, first.t, first.s)
    assert float(std.max()) == 0
    torch.testing.assert_close(second.x_t, x, rtol=1e-3, atol=1e-3)
    places = [i for i, (*_, scored) in enumerate(within_window(plan(tiny, config), config.window, 4)) if scored]
    assert places == [2]


def test_the_gain_is_that_of_the_reward_from_the_latents_of_the_step(tiny, tiny_reward, config) -> None:
    """Sorted by score, advantages fall within a group, and over a step they are the normalised gains."""
    config = replace(config, method="dense_grpo", reward_timestep="next")
    made, _ = explored(tiny, tiny_reward, config)
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    for step, rows in enumerate(torch.arange(len(made.steps)).split(len(PROMPTS))):
        steps = made.steps[rows]
        with torch.no_grad():
            before = tiny_reward.score(steps.x_t, steps.t, text, null)
        gain = made.scores[step].sort(dim=1, descending=True).values - before[:, None]
        expected = (gain - gain.mean()) / gain.std(correction=0)
        torch.testing.assert_close(steps.advantage, expected, rtol=1e-3, atol=1e-3)
        assert (steps.advantage.diff(dim=1) <= 0).all()


def test_the_sampling_policy_of_a_group_is_the_one_that_drew_it(tiny, tiny_reward, config) -> None:
    """Before any update the ratio is 1, so the loss is minus the mean advantage, which is 0."""
    config = replace(config, method="grpo")
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    batch, conditioning, _ = rollout(
        tiny, tiny_reward, METHODS["grpo"].select, PROMPTS, config, random.generator(0, "test")
    )
    assert batch.x_s.shape[1] == 4
    with torch.no_grad():
        loss, found = trainer.loss(batch, conditioning[batch.prompt])
        torch.testing.assert_close(trainer.log_probs(batch, conditioning[batch.prompt]), batch.log_p)
    torch.testing.assert_close(loss, -batch.advantage.mean(1), atol=1e-4, rtol=0)
    assert float(batch.advantage.mean(1).abs().max()) < 1e-3  # a group whose scores hardly differ is rounded most
    assert float(found["clipped"].max()) == 0


def test_a_group_update_raises_good_candidates_over_bad_ones(tiny, tiny_reward, config) -> None:
    config = replace(config, method="grpo", beta=0.1, learning_rate=3e-3, epochs_per_rollout=5)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    batch, conditioning, _ = rollout(
        tiny, tiny_reward, METHODS["grpo"].select, PROMPTS, config, random.generator(0, "test")
    )
    trainer.update(batch, conditioning, random.generator(0, "update"))
    with torch.no_grad():
        now = trainer.log_probs(batch, conditioning[batch.prompt])
    assert float(((now - batch.log_p) * batch.advantage).mean()) > 0
