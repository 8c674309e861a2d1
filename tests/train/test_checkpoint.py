import numpy as np
import pytest
import torch

from lpo.train import checkpoint
from lpo.train.loop import adamw, cosine, numpy_rng, optimizer_step


def test_a_generator_depends_on_its_three_arguments_alone():
    def draw(*key):
        return torch.rand(4, generator=checkpoint.generator(*key))

    torch.manual_seed(0)
    first = draw(1, "a", 2)
    torch.manual_seed(5)
    assert torch.equal(first, draw(1, "a", 2))
    others = [draw(2, "a", 2), draw(1, "b", 2), draw(1, "a", 3)]
    assert not any(torch.equal(first, other) for other in others)
    assert numpy_rng(1, "a", 2).random() == numpy_rng(1, "a", 2).random()


def test_the_newest_checkpoint_comes_back_bit_for_bit_and_alone(tmp_path):
    state = {"a/weight": torch.randn(3, 3), "step": torch.tensor(7)}
    checkpoint.save(tmp_path, 1, {"a/weight": torch.zeros(1)}, {})
    checkpoint.save(tmp_path, 12, state, {"history": [0.1, 2], "best": None})
    step, tensors, meta = checkpoint.load(tmp_path)
    assert step == 12 and meta == {"history": [0.1, 2], "best": None}
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[k], state[k]) for k in state)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000012.safetensors"]


def test_a_half_written_checkpoint_is_never_read(tmp_path):
    checkpoint.save(tmp_path, 3, {"x": torch.ones(2)}, {})
    (tmp_path / ".step-00000004.safetensors.partial").write_bytes(b"killed in the middle")
    assert checkpoint.load(tmp_path)[0] == 3
    assert checkpoint.load(tmp_path / "nowhere") is None


def test_another_identity_is_another_folder_and_old_runs_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    same = [checkpoint.folder("reward", {"a": 1, "b": 2}), checkpoint.folder("reward", {"b": 2, "a": 1})]
    assert same[0] == same[1] != checkpoint.folder("reward", {"a": 1, "b": 3})
    for seed in range(5):
        last = checkpoint.folder("reward", {"seed": seed})
    assert last.exists() and len(list((tmp_path / "reward").iterdir())) == checkpoint.KEPT_RUNS


def test_an_optimiser_goes_on_as_if_never_stopped():
    def model():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters())

    def step(layer, optimizer, k):
        x = torch.randn(5, 3, generator=checkpoint.generator(0, "x", k))
        optimizer_step(optimizer, layer(x).square().mean(), 0.1)

    straight, optimizer = model()
    for k in range(6):
        step(straight, optimizer, k)
    first, optimizer = model()
    for k in range(3):
        step(first, optimizer, k)
    second, fresh = model()
    second.load_state_dict(first.state_dict())
    checkpoint.load_optimizer(fresh, checkpoint.optimizer_tensors(optimizer))
    for k in range(3, 6):
        step(second, fresh, k)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), second.parameters(), strict=True))


def test_moments_take_the_strides_of_their_weights():
    """A file is row-major; a fused step wants weight, gradient and moments in one order."""
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer, fresh = adamw(list(layer.parameters()), 0.1, 0.0), adamw(list(layer.parameters()), 0.1, 0.0)
    optimizer_step(optimizer, layer(torch.ones(1, 3, 5, 5)).square().mean(), 0.1)
    stored = {k: v.contiguous() for k, v in checkpoint.optimizer_tensors(optimizer).items()}
    checkpoint.load_optimizer(fresh, stored)
    for weight, slots in fresh.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert slots[name].stride() == weight.stride() and torch.equal(slots[name], optimizer.state[weight][name])


def test_ema_is_the_formula():
    ema = {"w": torch.tensor([1.0, 2.0])}
    checkpoint.update_ema(ema, {"w": torch.tensor([3.0, 0.0])}, 0.75)
    torch.testing.assert_close(ema["w"], torch.tensor([1.5, 1.5]))


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [cosine(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3) and rates[1000] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:99]) > 0) and np.all(np.diff(rates[100:]) < 0)


def test_gradients_are_clipped():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer_step(optimizer, (weight * torch.tensor([30.0, 40.0])).sum(), 1.0, max_grad_norm=1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
