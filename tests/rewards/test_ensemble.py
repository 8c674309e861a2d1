from __future__ import annotations

import torch

from lpo.families.conditioning import Conditioning
from lpo.rewards.ensemble import ensemble_score


class MeanAndTime:
    """A reward that is the mean of the noisy latents, plus t / 1000."""

    space = "latent"

    def score(self, latents, t, conditioning, null):
        return latents.flatten(1).mean(1) + t / 1000


def test_it_is_the_mean_over_timesteps_and_draws_with_one_noise_for_all_rows(tiny):
    """score = sqrt(a) mean(x_0) + sqrt(1 - a) mean(eps) + t / 1000: rows differ by the mean sqrt(a) times 3 - 1."""
    transition, empty = tiny.transition(1.0), Conditioning({}, torch.zeros(2, 1))
    latents = torch.stack([torch.full((4, 8, 8), 3.0), torch.full((4, 8, 8), 1.0)])
    generator = torch.Generator().manual_seed(0)
    found = ensemble_score(MeanAndTime(), transition, latents, [100, 500], 3, empty, empty, generator)
    alphas = tiny.scheduler.alphas_cumprod[[100, 500]]
    torch.testing.assert_close(found[0] - found[1], alphas.sqrt().mean() * 2)
    replay = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.randn(4, 8, 8, generator=replay).mean() for _ in range(6)]).view(2, 3)
    expected = alphas.sqrt()[:, None] * 3 + (1 - alphas).sqrt()[:, None] * noise + torch.tensor([0.1, 0.5])[:, None]
    torch.testing.assert_close(found[0], expected.mean())
