from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch

from lpo import random
from lpo.config import load_params
from lpo.data.latents import Latents, write_captions, write_moments, write_space
from lpo.train.policy.offline import draw, stored_pairs, stored_votes
from lpo.train.policy.trainer import PolicyTrainer


@pytest.fixture
def config(repository):
    lpo = load_params(repository / "params.yaml").tune
    return replace(
        lpo, method="diffusion_dpo", prompts=4, prompts_per_rollout=2, num_inference_steps=5, batch_size=5,
        lora_rank=2, learning_rate=1e-3, beta=2000.0, timestep_range=(100, 600), validate_every=1, checkpoint_every=1,
    )  # fmt: skip


@pytest.fixture
def stored(tiny, tmp_path):
    """Four pictures of constant latents 0..3 without variance; the winner is the second image of every other pair."""
    moments = torch.cat([torch.arange(4.0).view(4, 1, 1, 1).expand(4, 4, 8, 8), torch.full((4, 4, 8, 8), -30.0)], dim=1)
    folder = tmp_path / "latents"
    folder.mkdir()
    write_moments(folder, [([f"u{i}" for i in range(4)], moments)], shard_size=3)
    captions = ["a cat", "two dogs"]
    write_captions(folder, captions)
    write_space(folder, tiny.codec.space())
    rows = [("a cat", "u0", "u1", 1.0, 0.0), ("two dogs", "u2", "u3", 0.0, 1.0), ("a cat", "u0", "u3", 0.5, 0.5)]
    frame = pd.DataFrame(rows, columns=["caption", "image_0_uid", "image_1_uid", "label_0", "label_1"])
    return frame, Latents(folder)


@pytest.fixture
def pairs(stored):
    return stored_pairs(*stored)


def test_winner_and_loser_share_noise_and_timestep_and_ties_are_left_out(tiny, pairs, config):
    """x_t = sqrt(a) x_0 + sqrt(1 - a) eps: the two differ by sqrt(a) (x_0^w - x_0^l) exactly."""
    assert pairs.captions == ["a cat", "two dogs"]
    batch, conditioning = draw(tiny, pairs, [0, 1], config, random.generator(0, "test"))
    assert len(batch) == 10 and len(conditioning) == 2 and batch.prompt.tolist() == [0] * 5 + [1] * 5
    assert int(batch.t.min()) >= 100 and int(batch.t.max()) < 600 and len(batch.t.unique()) > 1
    root = tiny.scheduler.alphas_cumprod[batch.t].sqrt().view(-1, 1, 1, 1)
    difference = batch.x_t[:, 0] - batch.x_t[:, 1]
    winner_less_loser = torch.tensor([0.0 - 1.0] * 5 + [3.0 - 2.0] * 5).view(-1, 1, 1, 1) * tiny.codec.scaling_factor
    torch.testing.assert_close(difference, (root * winner_less_loser).expand_as(difference), atol=1e-5, rtol=1e-4)
    noise = batch.x_t[:, 0] - root * torch.tensor([0.0] * 5 + [3.0] * 5).view(-1, 1, 1, 1) * tiny.codec.scaling_factor
    torch.testing.assert_close(noise, (1 - root**2).sqrt() * batch.noise, atol=1e-5, rtol=1e-4)


def test_the_error_is_that_of_the_noise_prediction(tiny, tiny_reward, pairs, config):
    """The tiny model predicts noise: minus the mean squared error of its own output, winner and loser apart."""
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0, stored=pairs)
    batch, conditioning = draw(tiny, pairs, [1, 0], config, random.generator(0, "test"))
    with torch.no_grad():
        found = trainer.log_probs(batch, conditioning[batch.prompt])
        for side in (0, 1):
            predicted = tiny.predict(batch.x_t[:, side], batch.t, conditioning[batch.prompt])
            expected = -(predicted - batch.noise).square().mean(dim=(1, 2, 3))
            torch.testing.assert_close(found[:, side], expected, rtol=1e-4, atol=1e-5)


def test_an_update_improves_on_winners_more_than_on_losers(tiny, tiny_reward, pairs, config):
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, epochs_per_rollout=6), seed=0, stored=pairs)
    batch, conditioning = draw(tiny, pairs, [0, 1], config, random.generator(0, "test"))
    before = trainer.loss(batch, conditioning[batch.prompt])[0].mean().item()
    assert before == pytest.approx(0.6931, abs=1e-3)
    trainer.update(batch, conditioning, random.generator(0, "update"))
    loss, found = trainer.loss(batch, conditioning[batch.prompt])
    assert loss.mean().item() < before and found["correct"].mean() > 0.6


def test_it_runs_to_the_end_and_counts_pairs_as_prompts(tiny, tiny_reward, pairs, config, tmp_path):
    class Silent:
        def log(self, step, metrics):
            pass

    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0, stored=pairs)
    trainer.run([], lambda: {"validation": 1.0}, tmp_path, Silent())
    assert [(h["prompts"], h["pairs"], h["kept"]) for h in trainer.history] == [(2, 10, 1.0)] * 2


def test_votes_are_the_images_of_pairs_one_by_one(tiny, tiny_reward, stored, config):
    """Liked u0 and u3, disliked u1 and u2, each noised on its own; a few updates go the way of the votes."""
    votes = stored_votes(*stored)
    assert votes.captions == ["a cat", "a cat", "two dogs", "two dogs"]
    assert votes.places[:, 0].tolist() == stored[1].places(["u0", "u1", "u3", "u2"]).tolist()
    config = replace(config, method="kto", epochs_per_rollout=6, batch_size=20, micro_batch_size=20)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0, stored=votes)
    batch, conditioning, _, used = trainer.collect([], 0, random.generator(0, "test"))
    assert used == 2 and batch.x_t.shape[:2] == (10, 1) and set(batch.advantage.flatten().tolist()) <= {1.0, -1.0}
    batch, conditioning = draw(tiny, votes, [0, 1, 2, 3], config, random.generator(0, "test"))
    assert batch.advantage.flatten().tolist() == [1.0] * 5 + [-1.0] * 5 + [1.0] * 5 + [-1.0] * 5
    before = trainer.loss(batch, conditioning[batch.prompt])[0].mean().item()
    assert before == pytest.approx(0.5, abs=1e-3)
    trainer.update(batch, conditioning, random.generator(0, "update"))
    loss, found = trainer.loss(batch, conditioning[batch.prompt])
    assert loss.mean().item() < before and found["correct"].mean() > 0.6


def test_soft_labels_reach_the_loss_of_a_pair(tiny, tiny_reward, stored, config):
    """A pair whose scores agree with the label is learned, one whose scores contradict it is learned turned round."""
    frame = stored[0].assign(gap_aesthetic=[1.0, -1.0, 0.0], gap_clip=[2.0, -2.0, 0.0], gap_vqa=[0.0, 0.0, 0.0])
    soft = stored_pairs(frame, stored[1], soft=True)
    certainty = torch.tensor(2 / 3).mul(0.5).tanh()  # 2 sigmoid(z) - 1, z = (1 + 1 + 0) / 3
    torch.testing.assert_close(soft.advantage, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) * certainty)
    trainer = PolicyTrainer(tiny, tiny_reward, replace(config, method="smpo"), seed=0, stored=soft)
    batch, conditioning = draw(tiny, soft, [0, 1], config, random.generator(0, "test"))
    trainer.update(batch, conditioning, random.generator(0, "update"))
    gain = trainer.log_probs(batch, conditioning[batch.prompt]).detach()
    with tiny.reference():
        gain = gain - trainer.log_probs(batch, conditioning[batch.prompt]).detach()
    assert float((gain * batch.advantage).sum()) > 0
