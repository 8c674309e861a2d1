"""A reward that is an adapter of the policy's own model: three states of one set of weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.families import lora, sd
from lpo.rewards import lrm
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import rollout
from lpo.train.policy.trainer import PolicyTrainer

PROMPTS = ["a cat", "two dogs at night"]
T = torch.tensor([1, 700])


def latents(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def shaken(family, rank=2):
    """A reward on a backbone of its own, its adapter away from zero."""
    torch.manual_seed(2)
    model = LatentRewardModel(family, 8, 7.5, "multi_scale", adapter_rank=rank)
    for name, weight in model.adapter.items():
        weight.data += 0.1 * torch.randn(weight.shape, generator=random.generator(7, name))
    return model


@pytest.fixture
def saved(tiny_base, tmp_path):
    """What it scores alone, on a backbone without up blocks, and the folder it was saved to."""
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    model = shaken(backbone)
    model.save(tmp_path)
    return score(model), tmp_path


@torch.no_grad()
def score(model):
    return model.score(latents(), T, model.encode_prompts(PROMPTS), model.encode_prompts([""]))


@torch.no_grad()
def predict(family):
    return family.predict(latents(), T, family.encode_prompts(PROMPTS))


def policy_of(family):
    """An adapter of the policy, away from zero; its weights."""
    weights = family.add_lora(2, 0)
    state = family.lora_state()
    noise = {k: torch.randn(v.shape, generator=random.generator(5, k)) for k, v in state.items()}
    family.load_lora_state({k: 0.1 * v for k, v in noise.items()})
    return weights


def test_the_adapter_changes_the_score_and_the_model_without_it_is_the_base(tiny_base, tiny):
    family = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    model = shaken(family)
    with_adapter = score(model)
    for weight in model.adapter.values():
        weight.data.zero_()
    assert not torch.allclose(with_adapter, score(model))
    assert torch.equal(predict(family), predict(tiny))


def test_policy_reference_and_reward_do_not_disturb_each_other(saved, tiny_base, tiny):
    """Bit for bit: each state gives what it gives alone, in any order."""
    expected, folder = saved
    base = predict(tiny)
    alone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    policy_of(alone)
    tuned = predict(alone)
    assert not torch.allclose(base, tuned)
    family = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    reward = lrm.load(folder, family.device, family.dtype, family)
    assert torch.equal(predict(family), base)  # attached, and not active
    weights = policy_of(family)
    for _ in range(2):
        assert torch.equal(predict(family), tuned)
        assert torch.equal(score(reward), expected)
        with family.reference():
            assert torch.equal(predict(family), base)
            assert torch.equal(score(reward), expected)
            assert torch.equal(predict(family), base)
    assert all(w.requires_grad for w in weights)
    assert not any(w.requires_grad for w in reward.parameters())
    with pytest.raises(LpoError, match="adapter of another reward"):
        lrm.load(folder, family.device, family.dtype, family)


def test_a_training_of_the_policy_leaves_the_reward_as_it_is(saved, tiny_base, repository):
    """And it is the training with the same reward beside it as a model of its own, up to the last bit."""
    expected, folder = saved
    config = load_params(repository / "params.yaml").tune
    config = replace(config, num_inference_steps=4, batch_size=5, guidance_scale=3.0, lora_rank=2, learning_rate=1e-2,
                     threshold=replace(config.threshold, schedule="constant", low=0.0, high=0.0))  # fmt: skip
    states = []
    for shared in (True, False):
        family = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
        other = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
        reward = lrm.load(folder, family.device, family.dtype, family if shared else other)
        trainer = PolicyTrainer(family, reward, config, seed=3)
        select = METHODS["lpo"].select
        made = rollout(family, reward, select, PROMPTS, config, random.generator(0, "r"))
        trainer.update(*made[:2], random.generator(0, "u"))
        assert torch.equal(score(reward), expected)
        states.append(trainer.family.lora_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not any("reward" in k for k in states[0])


def test_training_it_changes_the_adapter_and_the_projections_only(tiny_base):
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    model = LatentRewardModel(backbone, 8, 1.0, "multi_scale", adapter_rank=2)
    before = {k: v.clone() for k, v in backbone.denoiser.state_dict().items()}
    weights = [p.requires_grad_(True) for p in model.trained("adapter")]
    text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    model.score(latents(), T, text, null).sum().backward()
    assert all(w.grad is not None for w in weights)
    torch.optim.SGD(weights, lr=1.0).step()
    changed = {k for k, v in backbone.denoiser.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(f".{lora.REWARD}." in k for k in changed)


def test_a_saved_adapter_is_small_and_knows_its_model(saved, tiny_base):
    _, folder = saved
    assert {p.name for p in folder.iterdir()} == {"config.json", "reward.safetensors"}
    family = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    whole = sum(p.numel() * p.element_size() for p in family.denoiser.parameters())
    assert (folder / "reward.safetensors").stat().st_size < whole / 4
    with pytest.raises(LpoError, match="no model is given"):
        lrm.load(folder, family.device)
    next(iter(family.denoiser.parameters())).data.mul_(2)
    with pytest.raises(LpoError, match="another base model"):
        lrm.load(folder, family.device, family.dtype, family)


def test_a_saved_policy_can_be_loaded_beside_it(saved, tiny_base, tmp_path_factory):
    expected, folder = saved
    tuned = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    policy_of(tuned)
    out = tmp_path_factory.mktemp("lora")
    tuned.save_lora(out, tuned.lora_state())
    family = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    reward = lrm.load(folder, family.device, family.dtype, family)
    family.load_lora(out)
    torch.testing.assert_close(predict(family), predict(tuned))
    assert torch.equal(score(reward), expected)


def test_checkpointing_computes_the_adapter_again_and_not_the_base(tiny_base):
    """The same gradients, though backward runs the blocks a second time, long after `visual` has returned."""
    found = []
    for checkpointing in (False, True):
        model = shaken(sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True))
        if checkpointing:
            model.backbone.denoiser.enable_gradient_checkpointing()
        weights = [p.requires_grad_(True) for p in model.trained("adapter")]
        text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
        model.score(latents(), T, text, null).sum().backward()
        found.append([p.grad for p in weights if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    for here, there in zip(*found, strict=True):
        assert torch.equal(here, there)


def test_adapters_are_switched_without_walking_the_tree_and_a_new_one_is_seen(tiny, monkeypatch):
    """The second switch looks nothing up; an adapter added later is switched off too, and one that was off stays so."""
    policy_of(tiny)
    moved = predict(tiny)
    with lora.switched_off(tiny.denoiser):
        base = predict(tiny)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.denoiser, "named_modules", lambda *_: pytest.fail("the tree was walked again"))
        with lora.switched_off(tiny.denoiser), lora.switched_off(tiny.denoiser):
            assert torch.equal(predict(tiny), base)
        assert torch.equal(predict(tiny), moved)
    reward = shaken(tiny)
    scores = score(reward)
    with lora.switched_off(tiny.denoiser):
        assert torch.equal(predict(tiny), base) and torch.equal(score(reward), scores)
        assert torch.equal(predict(tiny), base)
    trains = {name for name, weight in tiny.denoiser.named_parameters() if weight.requires_grad}
    with lora.switched_to(tiny.denoiser, lora.REWARD):
        assert {name for name, weight in tiny.denoiser.named_parameters() if weight.requires_grad} == trains
    assert torch.equal(predict(tiny), moved) and torch.equal(score(reward), scores)
