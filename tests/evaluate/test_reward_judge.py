"""The reward as a judge of finished pictures: its own score at the clean end, with the VAE of the model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.published_judges import photo

from lpo.config import Model, load_params
from lpo.errors import LpoError
from lpo.evaluate.reward_judge import CLEAN, load_reward_judge, reward_of
from lpo.families import load_family
from lpo.images import to_tensor
from lpo.rewards.lrm import LatentRewardModel

PICTURES = [photo(seed, 32, 32) for seed in range(3)]
PROMPTS = ["a cat", "two dogs at night", "a star on grass"]


@pytest.fixture
def model(repository: Path, tiny_base: Path) -> Model:
    return dataclasses.replace(load_params(repository / "params.yaml").model, path=str(tiny_base), device="cpu")


@pytest.fixture(params=["whole", "adapter"])
def saved(request: pytest.FixtureRequest, tmp_path: Path, model: Model, tiny_reward: LatentRewardModel) -> Path:
    """A reward with a backbone of its own, and one that is a low-rank change of the model."""
    reward = tiny_reward
    if request.param == "adapter":
        family = load_family(model)
        torch.manual_seed(3)
        reward = LatentRewardModel(family, 8, 1.0, "multi_scale", latent_space=family.codec.space(), adapter_rank=2)
        for weight in reward.adapter.parameters():
            torch.nn.init.normal_(weight)
    folder = tmp_path / "reward"
    folder.mkdir()
    reward.save(folder)
    return folder


@torch.no_grad()
def test_it_is_the_rewards_score_of_the_encoded_picture(saved: Path, model: Model) -> None:
    judge = load_reward_judge(saved, model)
    family, reward = load_family(model), judge.reward
    pixels = to_tensor(np.stack([np.asarray(picture) for picture in PICTURES]))
    latents = family.scale(family.encode_images(pixels)[:, :4])
    clean = torch.full((3,), CLEAN)
    expected = reward.score(latents, clean, reward.encode_prompts(PROMPTS), reward.encode_prompts([""]))
    found = judge.score(PICTURES, PROMPTS)
    torch.testing.assert_close(found, expected)
    assert found.shape == (3,) and found.std() > 1e-4


def test_a_reward_that_reads_these_latents_is_used(saved: Path, model: Model) -> None:
    assert reward_of(saved, model) == saved


def test_without_a_reward_there_is_none_and_a_damaged_one_is_told(tmp_path: Path, model: Model) -> None:
    assert reward_of(tmp_path, model) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LpoError, match="no latent reward model here"):
        reward_of(tmp_path, model)


def test_a_reward_of_another_vae_is_none(saved: Path, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["latent_space"]["probe"] = [-value for value in config["latent_space"]["probe"]]
    (saved / "config.json").write_text(json.dumps(config))
    assert reward_of(saved, model) is None
    assert "latents of another VAE" in caplog.text
