"""Stored pairs for Diffusion-DPO (arXiv 2311.12908): winner and loser of people, noised alike.

    x_t^w = add_noise(x_0^w, eps, t),  x_t^l = add_noise(x_0^l, eps, t),   eps ~ N(0, I) shared, t ~ U over the range

A "prompt" of this method is one stored pair with its caption. It is looked at `num_inference_steps` times, each time
with a timestep, a noise and a draw of the VAE's posterior of its own: as many rows as a prompt has steps in the
methods that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lpo.config import Tune
from lpo.data.latents import Latents, sample_latents
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.train.policy.steps import NoisyPairs


@dataclass(frozen=True)
class StoredPairs:
    """Decided pairs: `places` (N, 2, 2) shard and row in `latents` of winner and loser; captions, N."""

    latents: Latents
    places: np.ndarray
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def stored_pairs(frame: pd.DataFrame, latents: Latents) -> StoredPairs:
    """The pairs of a frame with the columns of data/filtered/kept.parquet; ties have no winner and are left out."""
    decided = frame[frame["label_0"] != frame["label_1"]]
    first = (decided["label_0"] > decided["label_1"]).to_numpy()
    zero, one = (latents.places(decided[f"image_{k}_uid"]) for k in (0, 1))
    swap = first[:, None]
    places = np.stack([np.where(swap, zero, one), np.where(swap, one, zero)], axis=1)
    return StoredPairs(latents, places, decided["caption"].tolist())


@torch.no_grad()
def draw(
    family: Family, pairs: StoredPairs, rows: list[int], config: Tune, generator: torch.Generator
) -> tuple[NoisyPairs, Conditioning]:
    """The pairs `rows`, noised; their conditioning has one row a pair. All noise is `generator`'s."""
    transition, times = family.transition(config.eta), config.num_inference_steps
    low, high = config.timestep_range
    count, shape = len(rows) * times, pairs.latents.shape
    prompt = torch.arange(len(rows)).repeat_interleave(times)
    t = torch.randint(low, min(high, transition.num_train_timesteps), (count,), generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    moments = pairs.latents.moments(pairs.places[rows].reshape(-1, 2)).view(len(rows), 2, -1, *shape[1:])[prompt]
    posterior = torch.randn(count * 2, *shape, generator=generator)
    x_0 = family.scale(sample_latents(moments.flatten(0, 1), posterior))
    x_t = transition.add_noise(x_0, noise.repeat_interleave(2, dim=0), t.repeat_interleave(2)).view(count, 2, *shape)
    device, dtype = family.device, family.dtype
    noisy = NoisyPairs(x_t.to(device, dtype), noise.to(device), t.to(device), prompt.to(device))
    return noisy, family.encode_prompts([pairs.captions[i] for i in rows])
