"""The reward as a library object."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lpo
from lpo.errors import LpoError
from lpo.random import generator
from lpo.rewards import scoring
from lpo.rewards.ensemble import ensemble_score
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.scoring import Reward


@pytest.fixture
def folder(tmp_path: Path, tiny, tiny_reward: LatentRewardModel, tiny_base: Path) -> Path:
    """A reward as `lpo reward` saves it, whose card names the tiny base."""
    tiny_reward.latent_space = tiny.codec.space()
    tiny_reward.save(tmp_path)
    (tmp_path / "README.md").write_text(f"---\nbase_model: {tiny_base}\n---\n\n# A reward\n")
    return tmp_path


def images(count: int, side: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def test_images_and_their_latents_have_the_scores_of_the_ensemble(folder, tiny, tiny_reward):
    reward = Reward.load(str(folder), device="cpu")
    drawn = images(3, tiny.pixels)
    scores = reward.score(drawn, "a cat", draws=2)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in drawn]).permute(0, 3, 1, 2) / 127.5 - 1
    latents = tiny.scale(tiny.encode_images(pixels).chunk(2, dim=1)[0])
    torch.testing.assert_close(reward.score(latents, ["a cat"] * 3, draws=2), scores)
    text, null = tiny_reward.encode_prompts(["a cat"] * 3), tiny_reward.encode_prompts([""])
    expected = ensemble_score(
        tiny_reward, tiny.transition(1.0), latents, scoring.TIMESTEPS, 2, text, null, generator(0, "score")
    )
    torch.testing.assert_close(scores, expected)
    assert not torch.equal(reward.score(drawn, "a cat", seed=1), reward.score(drawn, "a cat"))


def test_noisy_latents_are_scored_at_their_timesteps(folder, tiny, tiny_reward):
    latents, t = torch.randn(2, *tiny.latent_shape, generator=generator(0, "x")), torch.tensor([1, 900])
    found = Reward.load(folder, device="cpu").score_at(latents, t, ["a cat", "two dogs"])
    text, null = tiny_reward.encode_prompts(["a cat", "two dogs"]), tiny_reward.encode_prompts([""])
    torch.testing.assert_close(found, tiny_reward.score(latents, t, text, null))


def test_images_of_another_size_are_resized(folder, tiny):
    reward = Reward.load(folder, device="cpu")
    assert reward.encode(images(1, 3 * tiny.pixels + 1)).shape == (1, *tiny.latent_shape)


def test_mistakes_are_told(folder, tiny_base, tmp_path_factory):
    reward = Reward.load(folder, base=tiny_base, device="cpu")
    with pytest.raises(LpoError, match="2 prompts for 1 images"):
        reward.score(images(1, 8), ["a", "b"])
    with pytest.raises(LpoError, match="no dtype 'half'"):
        Reward.load(folder, dtype="half")
    with pytest.raises(LpoError, match="no reward model here"):
        Reward.load(tmp_path_factory.mktemp("empty"))
    (folder / "README.md").unlink()
    with pytest.raises(LpoError, match="names no base model"):
        Reward.load(folder)
    spm = tmp_path_factory.mktemp("spm")
    shutil.copytree(folder, spm, dirs_exist_ok=True)
    (spm / "config.json").write_text('{"kind": "spm"}')
    with pytest.raises(LpoError, match="but SPO's"):
        Reward.load(spm)


@pytest.mark.slow
def test_the_package_exports_it_and_imports_no_torch_until_then():
    assert lpo.Reward is Reward
    program = "import sys, lpo; print('torch' in sys.modules); lpo.Reward; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


LIBRARY = """
import importlib.metadata, sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {absent!r} else self.finder.find_spec(name, path, target)
    def find_distributions(self, context=importlib.metadata.DistributionFinder.Context()):
        found = getattr(self.finder, "find_distributions", lambda context: [])(context)
        return [one for one in found if one.name.lower() not in {absent!r}]
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from lpo import Reward
import lpo.cli, lpo.sampling.generate, lpo.sampling.search
print(sorted({absent!r} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_scoring_and_sampling_need_no_package_of_the_pipeline():
    """What the extras install is not there; the library imports all the same."""
    absent = {"pandas", "pyarrow", "scipy", "matplotlib", "dvc", "dvclive", "great_expectations", "wandb", "prefect"}
    program = LIBRARY.format(absent=absent)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
