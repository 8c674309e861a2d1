"""Training data of the scorers and of the validators."""

from __future__ import annotations

import numpy as np
import torch

from lpo.train.pretrain.scorers import batch, distort


def test_points_are_lost_exactly_where_an_image_was_distorted() -> None:
    images = batch(32, np.random.default_rng(0))[1]
    changed, lost = distort(images, np.random.default_rng(1))
    different = (changed - images).abs().amax((1, 2, 3)) > 1e-5
    assert torch.equal(different, lost > 0) and 0 < int(different.sum()) < len(images)
    assert changed.min() >= -1 and changed.max() <= 1


def test_validators_see_the_scenes_of_the_scorers_with_further_flaws() -> None:
    plain, distorted = (batch(16, np.random.default_rng(3), which) for which in (False, True))
    assert plain[0] == distorted[0] and plain[1].shape == distorted[1].shape
    assert bool((distorted[3] <= plain[3]).all()) and bool((distorted[3] >= 0).all())
    assert not torch.equal(plain[1], distorted[1])
