from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Normal, kl_divergence

from lpo import random
from lpo.config import load_params
from lpo.diffusion.transitions import step_gain
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.preference.losses import lpo_loss
from lpo.train.policy import rollout as rollouts
from lpo.train.policy import trainer as policy
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import explore, rollout
from lpo.train.policy.trainer import PolicyTrainer

PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi", "a star on grass"]


class Silent:
    def log(self, step, metrics):
        pass


@pytest.fixture
def config(repository):
    lpo = load_params(repository / "params.yaml").tune
    return replace(
        lpo, prompts=12, prompts_per_rollout=4, num_inference_steps=4, batch_size=5, guidance_scale=3.0, lora_rank=2,
        validate_every=2, checkpoint_every=1, learning_rate=1e-2, timestep_range=(0, 1000),
        timestep_weights="none", beta=150.0,
        threshold=replace(lpo.threshold, schedule="constant", low=0.0, high=0.0),
    )  # fmt: skip


def pairs_of(family, reward, config, seed=0):
    return rollout(family, reward, METHODS[config.method].select, PROMPTS, config, random.generator(seed, "test"))


def test_winner_and_loser_start_from_the_same_latents_and_the_reward_ranks_them(tiny, tiny_reward, config):
    pairs, conditioning, statistics = pairs_of(tiny, tiny_reward, config)
    assert [s.t for s in statistics] == [751, 501, 251, 1]
    assert len(pairs) == sum(s.kept for s in statistics) == 16
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    with torch.no_grad():
        best, worst = (tiny_reward.score(x, pairs.t, text[pairs.prompt], null) for x in (pairs.best, pairs.worst))
    assert bool((best > worst).all())
    assert len(conditioning) == len(PROMPTS)


def test_a_last_step_without_noise_makes_no_pair(tiny, tiny_reward, config):
    """The scheduler ends at alpha 1, so the step from t = 1 has no density (decisions.md 17)."""
    tiny.scheduler = DDIMScheduler.from_config(tiny.scheduler.config, set_alpha_to_one=True)
    pairs, _, statistics = pairs_of(tiny, tiny_reward, config)
    assert [s.t for s in statistics] == [751, 501, 251] and set(pairs.t.tolist()) == {751, 501, 251}


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "expected"), [(1e-4, 1e-4), (None, None), (1e6, None)])
def test_gradients_are_clipped_to_max_grad_norm(tiny, tiny_reward, config, limit, expected):
    """Gradients as the optimiser took them: their norm is the limit where the loss's own norm is above it."""
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, max_grad_norm=limit), 0)
    trainer.learn(pairs, conditioning)
    norm = torch.stack([weight.grad.norm() for weight in trainer.weights]).norm().item()
    assert norm == pytest.approx(expected, rel=1e-3) if expected else norm > 1e-3


def test_prompts_are_encoded_once_a_rollout(tiny, tiny_reward, config, monkeypatch):
    """For the policy and for the reward: the prompts, and the empty prompt that guidance and enhancement need."""
    asked = []
    for model in (tiny, tiny_reward):
        seen = []

        def counted(prompts, encode=model.encode_prompts, seen=seen):
            seen.append(tuple(prompts))
            return encode(prompts)

        monkeypatch.setattr(model, "encode_prompts", counted)
        asked.append(seen)
    pairs_of(tiny, tiny_reward, config)
    for seen in asked:
        assert seen.count(tuple(PROMPTS)) == 1 and set(seen) <= {tuple(PROMPTS), ("",)} and seen.count(("",)) <= 1


def test_clamped_ratios_are_written_by_timestep(tiny, tiny_reward, config):
    """With a clamp far away none is; with one of almost nothing, those of an adapter that has learned are."""
    trainer, shares = PolicyTrainer(tiny, tiny_reward, config, 0), {}
    for epsilon in (0.99, 1e-9):
        trainer.config = replace(config, clip_epsilon=epsilon)
        found = trainer.update(*pairs_of(tiny, tiny_reward, config)[:2], random.generator(0, "u"))
        shares[epsilon] = {t: row["clipped"] for t, row in found["by_timestep"].items()}
    assert set(shares[0.99]) == {751, 501, 251, 1} and set(shares[0.99].values()) == {0.0}
    assert min(shares[1e-9].values()) > 0.5


def test_every_pair_is_a_step_of_the_policy(tiny, tiny_reward, config):
    """Both candidates lie about one standard deviation a dimension from the mean that x_t, t and the prompt give."""
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    transition, null = tiny.transition(config.eta), tiny.encode_prompts([""])
    with torch.no_grad():
        prediction = tiny.guided(pairs.x_t, pairs.t, conditioning[pairs.prompt], null, config.guidance_scale)
    mean, std = transition.mean_std(prediction, pairs.x_t, pairs.t, pairs.s)
    for x in (pairs.best, pairs.worst):
        assert float(((x - mean) / std).std()) == pytest.approx(1, abs=0.1)


def test_a_rollout_in_parts_is_the_rollout(tiny, tiny_reward, config, monkeypatch):
    """Of 4 prompts with 4 candidates the model and the reward see 4 rows at a time, or 16."""
    seen, score = [], tiny_reward.score
    monkeypatch.setattr(tiny_reward, "score", lambda x, *more: seen.append(len(x)) or score(x, *more))
    whole, parts = (
        explore(tiny, tiny_reward, METHODS["lpo"].select, PROMPTS, replace(config, micro_batch_size=size),
                random.generator(0, "test"))[0] for size in (4, 1)
    )  # fmt: skip
    assert seen == [16] * 4 + [4] * 16
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.steps.x_s, whole.steps.x_s, rtol=1e-4, atol=1e-4)


def test_steps_and_updates_run_nothing_that_is_away(tiny, tiny_reward, config, tmp_path, monkeypatch):
    """Text encoders and the VAE leave a GPU during a rollout's steps and updates; here they break instead."""
    encoders = [family.text_encoders["text_encoder"] for family in (tiny, tiny_reward.backbone)]
    calls, parts = [], {id(part) for part in (*encoders, tiny.codec.vae)}

    @contextmanager
    def broken(modules, device, purpose):
        assert {id(part) for part in modules} == parts
        calls.append((device, purpose))
        hooks = [part.register_forward_pre_hook(lambda *_: pytest.fail("it is away")) for part in modules]
        yield
        for hook in hooks:
            hook.remove()

    monkeypatch.setattr(policy, "away", broken)
    monkeypatch.setattr(rollouts, "away", broken)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    trainer.run(PROMPTS * 3, lambda: {"validation": 0.0, "reward": 0.0, "diversity": 1.0}, tmp_path, Silent())
    assert calls == [(torch.device("cpu"), "rollout"), (torch.device("cpu"), "updates")] * 3


def test_a_reward_of_pixels_keeps_the_vae(tiny, tiny_reward):
    assert tiny.codec.vae in rollouts.idle(tiny, tiny_reward)
    assert rollouts.idle(tiny, SimpleNamespace()) == [tiny.text_encoders["text_encoder"]]


def test_a_threshold_keeps_only_what_is_above_it(tiny, tiny_reward, config):
    _, _, open_ = pairs_of(tiny, tiny_reward, config)
    half = replace(config, threshold=replace(config.threshold, schedule="quantile", low=0.5))
    _, _, closed = pairs_of(tiny, tiny_reward, half)
    assert all(c.kept == 2 and o.kept == 4 for c, o in zip(closed[:1], open_[:1], strict=True))
    impossible = replace(config, threshold=replace(config.threshold, low=1.0, high=1.0))
    assert len(pairs_of(tiny, tiny_reward, impossible)[0]) == 0


def test_steps_outside_the_range_yield_no_pairs(tiny, tiny_reward, config):
    pairs, _, statistics = pairs_of(tiny, tiny_reward, replace(config, timestep_range=(250, 600)))
    assert {s.t for s in statistics} == set(pairs.t.tolist()) == {501, 251}


def test_a_trajectory_goes_on_from_a_candidate_drawn_blindly_or_from_the_best(tiny, tiny_reward, config):
    """Every x_t after the first is a candidate of the step before: with K = 2 its best or its worst one."""
    config = replace(config, num_candidates=2, threshold=replace(config.threshold, low=-1.0))
    share = {}
    for how in ("random", "best"):
        how_config, generator = replace(config, continue_from=how), random.generator(0, "n")
        made, _ = explore(tiny, tiny_reward, METHODS["lpo"].select, PROMPTS * 16, how_config, generator)
        x_t, best, worst = (x.view(4, 64, -1) for x in (made.steps.x_t, made.steps.best, made.steps.worst))
        from_best, from_worst = ((x_t[1:] == x[:-1]).all(2) for x in (best, worst))
        assert bool((from_best ^ from_worst).all())
        share[how] = float(from_best.float().mean())
    assert share["best"] == 1 and 0.3 < share["random"] < 0.7  # 192 draws: 0.2 is 5.5 standard deviations


def test_scores_that_are_no_numbers_stop_the_rollout(tiny, tiny_reward, config, monkeypatch):
    monkeypatch.setattr(tiny_reward, "score", lambda x, *rest: torch.full((len(x),), torch.nan))
    with pytest.raises(LpoError, match="64 of 64 scores"):
        pairs_of(tiny, tiny_reward, config)


def test_a_range_without_steps_is_refused(tiny, tiny_reward, config):
    with pytest.raises(LpoError, match="none of the 4 steps, from t = 751 to 1"):
        pairs_of(tiny, tiny_reward, replace(config, timestep_range=(300, 400)))


def test_a_reward_that_only_looks_at_the_next_timestep_is_given_it(tiny, tiny_reward, config, monkeypatch):
    seen = []
    score = tiny_reward.score
    monkeypatch.setattr(
        tiny_reward, "score", lambda x, t, *rest: seen.append(t.unique().tolist()) or score(x, t, *rest)
    )
    pairs_of(tiny, tiny_reward, replace(config, reward_timestep="current"))
    pairs_of(tiny, tiny_reward, replace(config, reward_timestep="next"))
    assert seen == [[751], [501], [251], [1], [501], [251], [1], [0]]


def test_one_policy_and_one_reference_forward_equal_the_published_four(tiny, tiny_reward, config):
    """The published recipe: winner and loser, policy and a deep copied reference, four guided forwards."""
    config = replace(config, kl_weight=0.0)  # which the published recipe has not
    frozen = copy.deepcopy(tiny)
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    state = {k: 0.1 * torch.randn(v.shape, generator=random.generator(5, k)) for k, v in tiny.lora_state().items()}
    tiny.load_lora_state(state)
    null, transition = frozen.encode_prompts([""]), frozen.transition(config.eta)

    def log_prob(model, x):
        prediction = model.guided(pairs.x_t, pairs.t, conditioning[pairs.prompt], null, config.guidance_scale)
        return transition.log_prob(x, *transition.mean_std(prediction, pairs.x_t, pairs.t, pairs.s), "mean")

    four = [log_prob(model, x) for x in (pairs.best, pairs.worst) for model in (tiny, frozen)]
    expected, _ = lpo_loss(*four, config.beta, config.clip_epsilon)
    loss, _ = trainer.loss(pairs, conditioning[pairs.prompt])
    torch.testing.assert_close(loss, expected)
    mine = torch.autograd.grad(loss.sum(), trainer.weights)
    theirs = torch.autograd.grad(expected.sum(), trainer.weights)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_balanced_weights_make_every_step_pull_equally(tiny, tiny_reward, config):
    """Each row's loss times mean(g) / g: with the gradient of a density proportional to g, the product is mean(g)."""
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    text, found = conditioning[pairs.prompt], {}
    for name in ("none", "balanced"):
        trainer = PolicyTrainer(copy.deepcopy(tiny), tiny_reward, replace(config, timestep_weights=name), seed=0)
        found[name] = trainer.loss(pairs, text)[0].detach()
    gains = step_gain(tiny.transition(config.eta), pairs.t, pairs.s)
    assert gains.max() > 1.5 * gains.min()
    every_step = gains.view(4, -1)[:, 0]  # all pairs are kept, so each of the four steps has as many
    torch.testing.assert_close(found["balanced"], found["none"] * every_step.mean() / gains)


def test_drift_is_how_far_a_step_lies_from_the_bases(tiny, tiny_reward, config):
    frozen = copy.deepcopy(tiny)
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    assert float(trainer.loss(pairs, conditioning[pairs.prompt])[1]["drift"].max()) == 0
    tiny.load_lora_state({k: 0.1 * torch.ones_like(v) for k, v in tiny.lora_state().items()})
    null, transition = frozen.encode_prompts([""]), frozen.transition(config.eta)
    with torch.no_grad():
        means = [
            transition.mean_std(
                model.guided(pairs.x_t, pairs.t, conditioning[pairs.prompt], null, config.guidance_scale),
                pairs.x_t, pairs.t, pairs.s,
            )
            for model in (tiny, frozen)
        ]  # fmt: skip
    (ours, std), (theirs, _) = means
    expected = ((ours - theirs) / std).square().flatten(1).sum(1).sqrt()
    drift = trainer.loss(pairs, conditioning[pairs.prompt])[1]["drift"]
    assert float(expected.min()) > 0.01
    torch.testing.assert_close(drift, expected, rtol=1e-4, atol=1e-4)
    found = trainer.update(pairs, conditioning, random.generator(0, "u"))
    assert found["drift"] > 0 and all(row["drift"] > 0 for row in found["by_timestep"].values())


@pytest.mark.slow
def test_the_kl_divergence_is_that_of_torch(tiny, tiny_reward, config):
    """What kl_weight adds to every row is its divergence from torch, and its gradient draws the mean to the base's."""
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    text = conditioning[pairs.prompt]
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, timestep_weights="balanced", kl_weight=0.0), seed=0)
    trainer.update(pairs, conditioning, random.generator(0, "update"))
    plain, found = trainer.loss(pairs, text)
    trainer.config = replace(trainer.config, kl_weight=0.3)
    loss, _ = trainer.loss(pairs, text)
    with torch.no_grad():
        means = [trainer.family.guided(pairs.x_t, pairs.t, text, trainer.null, config.guidance_scale)]
        with tiny.reference():
            means.append(trainer.family.guided(pairs.x_t, pairs.t, text, trainer.null, config.guidance_scale))
        policy, base = (Normal(*trainer.transition.mean_std(p, pairs.x_t, pairs.t, pairs.s)) for p in means)
        divergence = kl_divergence(policy, base).flatten(1).sum(1)
    assert float(divergence.min()) > 1e-4
    torch.testing.assert_close(loss - plain, 0.3 * divergence, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found["drift"].square() / 2, divergence, rtol=1e-3, atol=1e-5)
    trainer.config = replace(trainer.config, kl_weight=100.0, epochs_per_rollout=5)
    trainer.update(pairs, conditioning, random.generator(1, "update"))
    assert float(trainer.loss(pairs, text)[1]["drift"].mean()) < float(found["drift"].mean()) / 2


def test_a_batch_in_parts_is_the_batch(tiny, tiny_reward, config):
    """Gradients of one optimiser step, from micro-batches of 1, of 3 (which leaves a rest) and of all."""
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    found = {}
    for size in (16, 3, 1):
        trainer = PolicyTrainer(copy.deepcopy(tiny), tiny_reward, replace(config, micro_batch_size=size), seed=0)
        losses, statistics = trainer.learn(pairs, conditioning)
        found[size] = [w.grad for w in trainer.weights], losses, statistics["correct"]
    for size in (3, 1):
        torch.testing.assert_close(found[size], found[16], rtol=1e-4, atol=1e-5)


def test_weights_in_the_order_of_a_gpu_make_the_same_pairs_and_losses(tiny, tiny_reward, config):
    """On CUDA convolutions are loaded channels_last; nothing may depend on strides."""
    found = []
    for order in (torch.contiguous_format, torch.channels_last):
        family, reward = copy.deepcopy(tiny), copy.deepcopy(tiny_reward)
        for part in (family.denoiser, family.codec.vae, reward.backbone.denoiser):
            part.to(memory_format=order)
        made, conditioning, _ = pairs_of(family, reward, config)
        losses, _ = PolicyTrainer(family, reward, config, seed=0).learn(made, conditioning)
        found.append((made.x_s, losses, family.decode(made.best)))
    assert not family.denoiser.conv_in.weight.is_contiguous()
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_an_update_raises_winners_over_losers(tiny, tiny_reward, config):
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, learning_rate=1e-3, epochs_per_rollout=5), seed=0)
    pairs, conditioning, _ = pairs_of(tiny, tiny_reward, config)
    before = trainer.loss(pairs, conditioning[pairs.prompt])[0].detach().mean()
    assert float(before) == pytest.approx(0.6931, abs=1e-3)  # policy = reference
    trainer.update(pairs, conditioning, random.generator(0, "update"))
    after, statistics = trainer.loss(pairs, conditioning[pairs.prompt])
    assert float(after.detach().mean()) < float(before)
    assert float(statistics["correct"].mean()) > 0.6


def run(family, reward, config, folder, stop_after=None):
    trainer = PolicyTrainer(family, reward, config, seed=3)
    calls = []

    def validate():
        calls.append(1)
        weight = sum(float(v.abs().sum()) for v in family.lora_state().values())
        return {"validation": weight / 1e4}

    if stop_after is not None:

        class Killed(Exception):
            pass

        class Killer:
            def log(self, step, metrics):
                if step == stop_after:
                    raise Killed

        with pytest.raises(Killed):
            trainer.run(PROMPTS, validate, folder, Killer())
        return None
    trainer.run(PROMPTS, validate, folder, Silent())
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_killed_and_resumed_equals_never_interrupted(tiny, tiny_reward, config, tmp_path, stop):
    families = [copy.deepcopy(tiny) for _ in range(3)]
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = run(families[0], tiny_reward, config, tmp_path / "straight")
    run(families[1], tiny_reward, config, tmp_path / "killed", stop_after=stop)
    resumed = run(families[2], tiny_reward, config, tmp_path / "killed")
    for state in ("ema", "best"):
        one, other = getattr(straight, state), getattr(resumed, state)
        assert all(torch.equal(one[k], other[k]) for k in one)
    assert all(torch.equal(a, b) for a, b in zip(straight.weights, resumed.weights, strict=True))
    assert straight.history == resumed.history and straight.updates == resumed.updates


def test_every_prompt_is_used_once_a_pass(tiny, tiny_reward, config):
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, prompts=10, prompts_per_rollout=3), seed=0)
    prompts = [f"p{i}" for i in range(5)]
    drawn = [prompts[i] for r in range(trainer.rollouts) for i in trainer.rows_of(len(prompts), r)]
    assert len(drawn) == 10 and sorted(drawn[:5]) == sorted(drawn[5:]) == prompts


def test_a_guard_that_stops_ends_the_run_and_a_resumed_one_stays_ended(tiny, tiny_reward, config, tmp_path):
    """Three rollouts, validated after each; the reward runs away at the second."""
    guard = replace(config.guard, action="stop", reward_margin=1.0, drift_limit=99.0)
    config = replace(config, validate_every=1, guard=guard)
    rewards = iter([0.1, 5.0, 6.0, 7.0])

    def validate():
        return {"validation": 0.5 if not trainer.history else 0.1, "reward": next(rewards), "diversity": 1.0}

    another = copy.deepcopy(tiny)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    trainer.run(PROMPTS, validate, tmp_path, Silent())
    assert len(trainer.history) == 2 and "reward hacking" in trainer.history[1]["warnings"][0]
    assert trainer.best_value == 0.5  # what was best before it ran away is kept
    again = PolicyTrainer(another, tiny_reward, config, seed=0)
    again.run(PROMPTS, validate, tmp_path, Silent())
    assert again.history == trainer.history
    assert all(torch.equal(again.best[k], trainer.best[k]) for k in again.best)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same_and_is_traced_once(tiny_base, tiny_reward, repository, config, monkeypatch):
    """Policy and reference are graphs of their own; the second update finds them. The backend is torch's plain one."""
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: whole(module, backend="eager"))
    base = replace(load_params(repository / "params.yaml").model, path=str(tiny_base))
    losses, graphs = [], []
    for compiled in (False, True):
        family = load_family(replace(base, compile=compiled))
        trainer = PolicyTrainer(family, tiny_reward, replace(config, batch_size=2), seed=0)
        made, conditioning, _ = pairs_of(family, tiny_reward, replace(config, num_inference_steps=2))
        found = []
        for _ in range(2):
            found.append(trainer.learn(made[torch.arange(2)], conditioning)[0])
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        losses.append(torch.cat(found))
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)
    assert graphs[:2] == [graphs[0]] * 2 and graphs[0] < graphs[2] == graphs[3]
