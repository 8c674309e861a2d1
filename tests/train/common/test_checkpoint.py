import torch

from lpo import random
from lpo.train.common import checkpoint
from lpo.train.common.loop import adamw, optimizer_step


def layer_and_optimizer():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    return layer, torch.optim.AdamW(layer.parameters())


def test_the_newest_checkpoint_comes_back_bit_for_bit_and_alone(tmp_path):
    layer, optimizer = layer_and_optimizer()
    meta = {"history": [0.1, 2], "best": None}
    checkpoint.save_training(tmp_path, 1, optimizer, {"model": {"weight": torch.zeros(1)}})
    checkpoint.save_training(tmp_path, 12, optimizer, {"model": layer.state_dict(), "best": {}}, meta)
    found = checkpoint.load_training(tmp_path, optimizer)
    assert found.step == 12 and found.meta == meta and found.state("best") == {}
    assert found.state("model").keys() == layer.state_dict().keys()
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in found.state("model").items())
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000012.safetensors"]


def test_a_half_written_checkpoint_is_never_read(tmp_path):
    layer, optimizer = layer_and_optimizer()
    checkpoint.save_training(tmp_path, 3, optimizer, {"model": layer.state_dict()})
    (tmp_path / ".step-00000004.safetensors.partial").write_bytes(b"killed while it was written")
    assert checkpoint.load_training(tmp_path, optimizer).step == 3
    assert checkpoint.load_training(tmp_path / "nowhere", optimizer) is None


def test_a_resumed_training_equals_one_that_never_stopped(tmp_path):
    def step(layer, optimizer, k):
        x = torch.randn(5, 3, generator=random.generator(0, "x", k))
        optimizer_step(optimizer, layer(x).square().mean(), 0.1)

    straight, optimizer = layer_and_optimizer()
    for k in range(6):
        step(straight, optimizer, k)
    first, optimizer = layer_and_optimizer()
    for k in range(3):
        step(first, optimizer, k)
    checkpoint.save_training(tmp_path, 3, optimizer, {"model": first.state_dict()})
    second, fresh = layer_and_optimizer()
    second.load_state_dict(checkpoint.load_training(tmp_path, fresh).state("model"))
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
