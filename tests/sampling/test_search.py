from __future__ import annotations

import pytest
import torch

from lpo.config import SamplerSettings
from lpo.errors import LpoError
from lpo.sampling.generate import sample
from lpo.sampling.search import Search, search

PROMPT = "a cat above a taxi"
SETTINGS = SamplerSettings(4, 3.0, 1.0, 1)


def found(family, reward, candidates, trajectories, seed=7, settings=SETTINGS):
    return search(family, reward, PROMPT, seed, settings, Search(candidates, trajectories, [1, 300], 1))


def test_without_candidates_it_is_plain_sampling_bit_for_bit(tiny, tiny_reward):
    latents, scores, cost = found(tiny, tiny_reward, 1, 1)
    assert torch.equal(latents, sample(tiny, [PROMPT], [7], SETTINGS))
    assert (cost.denoiser, cost.reward, len(scores)) == (8, 2, 1)


def test_at_the_end_the_best_trajectory_is_taken(tiny, tiny_reward):
    latents, scores, cost = found(tiny, tiny_reward, 1, 3)
    plain = [sample(tiny, [PROMPT], [7 + i], SETTINGS) for i in range(3)]
    torch.testing.assert_close(latents, plain[int(scores.argmax())], rtol=1e-4, atol=1e-4)
    assert (cost.denoiser, cost.reward) == (24, 6)


def test_each_step_takes_the_best_candidate_so_that_the_reward_rises(tiny, tiny_reward):
    seen = []
    score = tiny_reward.score
    tiny_reward.score = lambda x, t, *rest: seen.append((x, score(x, t, *rest))) or seen[-1][1]
    found(tiny, tiny_reward, 6, 1)
    steps = seen[:4]
    assert all(len(scores) == 6 for _, scores in steps)
    last, scores = steps[-1]
    assert torch.equal(found(tiny, tiny_reward, 6, 1)[0][0], last[int(scores.argmax())])
    tiny_reward.score = score
    plain = torch.cat([found(tiny, tiny_reward, 1, 1, seed)[1] for seed in range(4)])
    better = torch.cat([found(tiny, tiny_reward, 8, 1, seed)[1] for seed in range(4)])
    assert better.mean() > plain.mean()


def test_candidates_need_noise(tiny, tiny_reward):
    with pytest.raises(LpoError, match="at eta 0 they are all the same"):
        found(tiny, tiny_reward, 2, 1, settings=SamplerSettings(4, 3.0, 0.0, 1))
    found(tiny, tiny_reward, 1, 2, settings=SamplerSettings(4, 3.0, 0.0, 1))
