from pathlib import Path

import pytest
import torch

from lpo.errors import LpoError
from lpo.scorers import embedded


@pytest.fixture(scope="module")
def committed():
    return embedded.load(Path(__file__).resolve().parents[2] / "data" / "scorers")


def pictures(captions, flaws=False):
    import numpy as np

    from lpo.emoji.render import render
    from lpo.emoji.scenes import flawed, layout, parse
    from lpo.images import to_tensor

    rng = np.random.default_rng(0)
    scenes = [layout(parse(caption), rng) for caption in captions]
    return to_tensor(render([flawed(s, rng) if flaws else s for s in scenes], rng))


def test_the_committed_scorers_know_the_right_caption(committed):
    captions = ["a cat", "three foxes on sand", "a red heart and a blue ball", "a car above a frog at night"]
    wrong = ["a dog", "two foxes on sand", "a green heart and a blue ball", "a car above a frog on grass"]
    right = committed.score(pictures(captions), captions)
    other = committed.score(pictures(wrong), captions)
    for name in ("clip", "vqa"):
        assert bool((right[name] > other[name]).all()), name
    assert bool((right["clip"].abs() <= 1).all()) and bool(((right["vqa"] >= 0) & (right["vqa"] <= 1)).all())


def test_flaws_cost_aesthetics_on_average(committed):
    captions = ["a cat", "a taxi on sand", "a star at night", "a frog on grass"] * 8
    clean, flawed = (committed.score(pictures(captions, f), captions)["aesthetic"].mean() for f in (False, True))
    assert float(clean) > float(flawed) + 0.5


def test_missing_scorers_say_what_to_do(tmp_path):
    with pytest.raises(LpoError, match="lpo base"):
        embedded.load(tmp_path)


def test_scores_are_the_same_whatever_the_batch(committed):
    captions = ["a cat", "two dogs", "a star at night"]
    images = pictures(captions)
    together = committed.score(images, captions)
    for i, caption in enumerate(captions):
        alone = committed.score(images[i : i + 1], [caption])
        for name in together:
            torch.testing.assert_close(alone[name][0], together[name][i], rtol=1e-4, atol=1e-4)
