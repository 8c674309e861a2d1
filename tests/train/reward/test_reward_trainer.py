from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from lpo.config import load_params
from lpo.data.latents import Latents, write_captions, write_moments, write_space
from lpo.errors import NotFinite
from lpo.train.reward.pairs import load_pairs
from lpo.train.reward.trainer import RewardTrainer


class Silent:
    def log(self, step, metrics):
        pass


@pytest.fixture
def config(repository):
    return replace(
        load_params(repository / "params.yaml").reward, steps=12, warmup_steps=2, batch_size=8, learning_rate=3e-3,
        validate_every=4, checkpoint_every=3, patience=10, embedding_dim=8,
    )  # fmt: skip


@pytest.fixture
def stored(tiny, tmp_path):
    """40 pictures whose latents are bright (even) or dark (odd), pairs that prefer the bright one, and two ties."""
    uids = [f"u{i}" for i in range(40)]
    means = torch.stack([torch.full((4, 8, 8), 1.0 if i % 2 == 0 else -1.0) for i in range(40)])
    moments = torch.cat([means, torch.full_like(means, -20.0)], dim=1)
    captions = ["a cat", "two dogs"]
    folder = tmp_path / "latents"
    folder.mkdir()
    write_moments(folder, [(uids, moments)], shard_size=16)
    write_captions(folder, captions)
    write_space(folder, tiny.codec.space())
    rows = [(captions[i % 2], uids[2 * i], uids[2 * i + 1], 1.0, 0.0) for i in range(18)]
    rows += [("a cat", uids[36], uids[38], 0.5, 0.5), ("a cat", uids[37], uids[39], 0.5, 0.5)]
    frame = pd.DataFrame(rows, columns=["caption", "image_0_uid", "image_1_uid", "label_0", "label_1"])
    return Latents(folder), frame.assign(num_example_per_prompt=1)


def trainer_of(tiny_base, latents, config):
    from lpo.families import sd
    from lpo.rewards.lrm import LatentRewardModel

    torch.manual_seed(1)
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    return RewardTrainer(LatentRewardModel(backbone, 8, 3.0, "multi_scale"), latents, config, seed=0)


@pytest.mark.parametrize(("limit", "expected"), [(1e-4, 1e-4), (None, None), (1e6, None)])
def test_gradients_are_clipped_to_max_grad_norm(tiny_base, stored, config, limit, expected):
    """Gradients as the optimiser took them: their norm is the limit where the loss's own norm is above it."""
    latents, frame = stored
    trainer = trainer_of(tiny_base, latents, replace(config, max_grad_norm=limit))
    trainer.step(load_pairs(frame, latents, weighted=True), 0)
    norm = torch.stack([weight.grad.norm() for weight in trainer.weights if weight.grad is not None]).norm().item()
    assert norm == pytest.approx(expected, rel=1e-3) if expected else norm > 1e-3


def test_a_training_that_diverges_says_at_which_step_and_keeps_its_last_checkpoint(
    tiny_base, stored, config, tmp_path, monkeypatch
):
    latents, frame = stored
    pairs, trainer = load_pairs(frame, latents, weighted=False), trainer_of(tiny_base, latents, config)
    usual, calls = RewardTrainer.loss, iter(range(100))
    monkeypatch.setattr(RewardTrainer, "loss", lambda *a: usual(*a) * (math.nan if next(calls) == 7 else 1))
    with pytest.raises(NotFinite, match="its gradient is nan") as caught:
        trainer.run(pairs, pairs, tmp_path, Silent())
    assert caught.value.where == "reward: step 8 of 12"
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-00000006.safetensors"]
    again = trainer_of(tiny_base, latents, config)
    assert again.resume(tmp_path) == 6
    assert all(bool(weight.isfinite().all()) for weight in again.weights)


def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(tiny_base, stored, config, tmp_path):
    trainer = trainer_of(tiny_base, stored[0], config)
    trainer.save(tmp_path, 3)
    trainer.weights[0].data.view(-1)[0] = math.inf
    with pytest.raises(NotFinite, match="1 of its .* tensors are NaN or infinite: model/") as caught:
        trainer.save(tmp_path, 6)
    assert caught.value.where == "step 6" and str(tmp_path) in caught.value.remedy
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-00000003.safetensors"]


@pytest.mark.slow
def test_it_learns_a_preference_that_is_there_and_ties_do_not_count(tiny_base, stored, config, tmp_path):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    trainer = trainer_of(tiny_base, latents, replace(config, steps=40, validate_every=40))
    trainer.run(pairs, pairs, tmp_path, Silent())
    right = trainer.accuracy(pairs)
    assert right.shape == (10, 20) and np.isnan(right[:, 18:]).all()
    assert np.nanmean(right[:3]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("stop", [4, 7, 11])
def test_killed_and_resumed_equals_never_interrupted(tiny_base, stored, config, tmp_path, stop):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = trainer_of(tiny_base, latents, config)
    straight.run(pairs, pairs, tmp_path / "straight", Silent())
    killed = trainer_of(tiny_base, latents, config)
    step = killed.step
    killed.step = lambda p, k: (_ for _ in ()).throw(InterruptedError) if k == stop else step(p, k)
    with pytest.raises(InterruptedError):
        killed.run(pairs, pairs, tmp_path / "killed", Silent())
    resumed = trainer_of(tiny_base, latents, config)
    resumed.run(pairs, pairs, tmp_path / "killed", Silent())
    one, other = straight.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert straight.history == resumed.history


def test_a_batch_in_parts_is_the_batch(tiny_base, stored, config):
    """One optimiser step on 8 pairs at once and in parts of 3, 3 and 2: the gradient of the mean."""
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    grads = []
    for size in (8, 3):
        trainer = trainer_of(tiny_base, latents, replace(config, micro_batch_size=size))
        loss = trainer.step(pairs, 0)
        grads.append([loss, *(w.grad for w in trainer.weights if w.grad is not None)])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_patience_stops_a_training_that_no_longer_improves(tiny_base, stored, config, tmp_path):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    trainer = trainer_of(
        tiny_base, latents, replace(config, steps=50, validate_every=1, patience=2, learning_rate=1e-9)
    )
    trainer.run(pairs, pairs, tmp_path, Silent())
    assert max(h["step"] for h in trainer.history) <= 4


def test_the_weights_of_the_best_validation_are_kept(tiny_base, stored, config, tmp_path, monkeypatch):
    """Validations after steps 4, 8 and 12, whose means are 0.6, 0.9 and 0.7; the second's bins differ, to 0.9."""
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    trainer, seen = trainer_of(tiny_base, latents, config), []
    values = iter([np.full((10, 20), 0.6), np.tile([[1.0], [0.8]], (5, 20)), np.full((10, 20), 0.7)])

    def accuracy(_):
        seen.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
        return next(values)

    monkeypatch.setattr(trainer, "accuracy", accuracy)
    trainer.run(pairs, pairs, tmp_path, Silent())
    kept = trainer.model.state_dict()
    same = [all(torch.equal(kept[k], state[k]) for k in kept) for state in seen]
    assert same == [False, True, False] and trainer.best_accuracy == pytest.approx(0.9)


def test_a_frozen_backbone_stays_as_it_was(tiny_base, stored, config, tmp_path):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=True)
    trainer = trainer_of(tiny_base, latents, replace(config, trainable="frozen"))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.run(pairs, pairs, tmp_path, Silent())
    changed = {k.split(".")[0] for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"visual_projection", "text_projection", "logit_scale"}


def test_shared_noise_is_shared_and_grid_timesteps_are_the_published_ones(tiny_base, stored, config):
    latents, frame = stored
    same = frame.assign(image_1_uid=frame["image_0_uid"])
    pairs = load_pairs(same, latents, weighted=False)
    rows, t = torch.arange(6), torch.full((6,), 500)
    for shared in (True, False):
        trainer = trainer_of(tiny_base, latents, replace(config, shared_noise=shared))
        with torch.no_grad():
            noisy = trainer.noised(pairs, rows, t, torch.Generator().manual_seed(0), kept=rows)
            first, second = trainer.scores(pairs, rows, t, noisy)
        assert torch.allclose(first, second, atol=1e-3) == shared
    grid = trainer_of(tiny_base, latents, replace(config, timesteps="grid"))
    drawn = grid.timesteps(2000, torch.Generator().manual_seed(0)).unique().tolist()
    assert drawn == list(range(1, 1000, 50))


def test_a_pairs_weight_is_one_over_its_prompts_examples(stored):
    latents, frame = stored
    counts = frame.assign(num_example_per_prompt=[1] * 10 + [4] * 10)
    weights = load_pairs(counts, latents, weighted=True).weights
    assert float(weights[0] / weights[-1]) == pytest.approx(4) and float(weights.mean()) == pytest.approx(1)
    assert torch.equal(load_pairs(counts, latents, weighted=False).weights, torch.ones(20))


def spm_trainer_of(tiny_base, latents, config, tmp_path):
    from lpo.config import Spm
    from lpo.emoji.vocabulary import make_tokenizer
    from lpo.families import sd
    from lpo.rewards import spm
    from lpo.scorers import embedded

    torch.manual_seed(2)
    folder = tmp_path / "scorers"
    folder.mkdir(exist_ok=True)
    embedded.Scorers(make_tokenizer()).save(folder)
    torch.manual_seed(1)
    model = spm.start(str(folder), sd.load(str(tiny_base), torch.device("cpu"), torch.float32), 1.0)
    assert isinstance(config, Spm)
    return RewardTrainer(model, latents, config, seed=0)


@pytest.mark.slow
def test_the_pixel_reward_learns_in_the_same_trainer_and_resumes_bit_for_bit(
    repository, tiny_base, stored, tmp_path, capsys
):
    config = replace(
        load_params(repository / "params.yaml").spm, steps=6, warmup_steps=1, batch_size=8, learning_rate=1e-3,
        validate_every=3, checkpoint_every=2, patience=10,
    )  # fmt: skip
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=False)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = spm_trainer_of(tiny_base, latents, config, tmp_path)
    before = {k: v.clone() for k, v in straight.model.state_dict().items()}
    straight.run(pairs, pairs, tmp_path / "straight", Silent())
    assert "spm: " in (bar := capsys.readouterr().err) and "lrm" not in bar
    assert not torch.equal(before["clip.visual_projection.weight"], straight.best["clip.visual_projection.weight"])
    killed = spm_trainer_of(tiny_base, latents, config, tmp_path)
    step = killed.step
    killed.step = lambda p, k: (_ for _ in ()).throw(InterruptedError) if k == 3 else step(p, k)
    with pytest.raises(InterruptedError):
        killed.run(pairs, pairs, tmp_path / "killed", Silent())
    resumed = spm_trainer_of(tiny_base, latents, config, tmp_path)
    resumed.run(pairs, pairs, tmp_path / "killed", Silent())
    assert straight.history == resumed.history
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in straight.model.state_dict().items())


@pytest.mark.slow
def test_the_thurstone_likelihood_learns_too_and_an_ensemble_judges_finished_pictures(
    tiny_base, stored, config, tmp_path
):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=False)
    config = replace(config, steps=40, validate_every=40, likelihood="thurstone", variance_offset=0.01)
    trainer = trainer_of(tiny_base, latents, config)
    trainer.run(pairs, pairs, tmp_path, Silent())
    right = trainer.ensemble_accuracy(pairs, [10, 100, 200], 2)
    assert right.shape == (20,) and np.isnan(right[18:]).all()
    assert np.nanmean(right) > 0.9
    assert np.array_equal(right, trainer.ensemble_accuracy(pairs, [10, 100, 200], 2), equal_nan=True)


def test_measurements_score_a_micro_batch_at_a_time_and_change_nothing_by_it(tiny_base, stored, config):
    """20 pairs, 3 at a time, under the training's autocast: validation, test and ensemble alike."""
    latents, frame = stored
    pairs, found = load_pairs(frame, latents, weighted=False), []
    for size in (64, 3):
        trainer = trainer_of(tiny_base, latents, replace(config, micro_batch_size=size))
        right = trainer.accuracy(pairs, bins=2)
        found.append((right, trainer.ensemble_accuracy(pairs, [10, 500], 2)))
    assert np.array_equal(found[0][0], found[1][0], equal_nan=True)
    assert np.array_equal(found[0][1], found[1][1], equal_nan=True)
    trainer = trainer_of(tiny_base, latents, replace(config, micro_batch_size=3, dtype="bf16"))
    seen: list[tuple[int, bool]] = []
    trainer.model.backbone.denoiser.conv_in.register_forward_pre_hook(
        lambda _, given: seen.append((len(given[0]), torch.is_autocast_enabled("cpu")))
    )
    trainer.accuracy(pairs, bins=2)
    trainer.ensemble_accuracy(pairs, [10, 500], 2)
    assert max(rows for rows, _ in seen) == 6 and all(on for _, on in seen)


@pytest.mark.parametrize("trainable", ["frozen", "denoiser"])
def test_a_checkpoint_and_the_best_hold_what_trains(tiny_base, stored, config, tmp_path, trainable):
    latents, frame = stored
    pairs = load_pairs(frame, latents, weighted=False)
    config = replace(config, steps=1, validate_every=1, trainable=trainable)
    trainer = trainer_of(tiny_base, latents, config)
    trainer.run(pairs, pairs, tmp_path, Silent())
    with safe_open(tmp_path / "step-00000001.safetensors", "pt") as file:
        names = {k for k in file.keys() if not k.startswith("optimizer/")}  # noqa: SIM118 (not a dict)
    own = {"visual_projection.weight", "text_projection.weight", "logit_scale"}
    unet = {f"unet.{k}" for k, _ in trainer.model.unet.named_parameters()} if trainable == "denoiser" else set()
    assert names == {f"{state}/{name}" for state in ("model", "best") for name in own | unet}
    assert set(trainer.best) == own | unet and not any("text_encoder" in name for name in names)


def test_a_thread_that_prepares_the_next_step_changes_nothing(tiny_base, stored, config):
    """As on a GPU: the batch of a step is made while the one before runs, and not beyond the last step."""
    latents, frame = stored
    pairs, weights = load_pairs(frame, latents, weighted=True), []
    for on in (False, True):
        trainer = trainer_of(tiny_base, latents, replace(config, steps=3))
        trainer.ahead.on = on
        for step in range(3):
            trainer.step(pairs, step)
            assert list(trainer.ahead.made) == ([step + 1] if on and step < 2 else [])
        weights.append([weight.detach().clone() for weight in trainer.weights])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
