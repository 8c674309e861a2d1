"""What people chose, as stored: pairs for Diffusion-DPO (arXiv 2311.12908) and SmPO, single votes for Diffusion-KTO.

    x_t^w = add_noise(x_0^w, eps, t),  x_t^l = add_noise(x_0^l, eps, t),   eps ~ N(0, I) shared, t ~ U over the range

A "prompt" of these methods is one stored pair, or one vote, with its caption. It is looked at `num_inference_steps`
times, each time with a timestep, a noise and a draw of the VAE's posterior of its own: as many rows as a prompt has
steps in the methods that sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lpo.config import Tune
from lpo.data.latents import Latents, sample_latents
from lpo.diffusion.transitions import Transition
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.preference.mpcf import soft_labels
from lpo.train.policy.steps import NoisyGroups


@dataclass(frozen=True)
class Stored:
    """N groups of M images: `places` (N, M, 2), shard and row in `latents`; advantage (N, M); captions, N."""

    latents: Latents
    places: np.ndarray
    advantage: torch.Tensor
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def stored_pairs(frame: pd.DataFrame, latents: Latents, soft: bool = False) -> Stored:
    """The pairs of a frame with the columns of data/filtered/kept.parquet; ties have no winner and are left out.

    The advantages of chosen and rejected are 1 and -1, or of soft labels a and 1 - a (`soft_labels`) 2 a - 1 and
    1 - 2 a. In the limit of certain labels the two are the same.

    Raises:
        LpoError: if soft labels are asked for and a gap is NaN.
    """
    decided = frame[frame["label_0"] != frame["label_1"]]
    first = (decided["label_0"] > decided["label_1"]).to_numpy()
    zero, one = (latents.places(decided[f"image_{k}_uid"]) for k in (0, 1))
    swap = first[:, None]
    places = np.stack([np.where(swap, zero, one), np.where(swap, one, zero)], axis=1)
    certainty = 2 * soft_labels(decided) - 1 if soft else np.ones(len(decided))
    advantage = torch.tensor(np.stack([certainty, -certainty], axis=1), dtype=torch.float32)
    return Stored(latents, places, advantage, decided["caption"].tolist())


def stored_votes(frame: pd.DataFrame, latents: Latents) -> Stored:
    """Every image of a decided pair as a vote of its own: liked where it was chosen, disliked where it was rejected."""
    pairs = stored_pairs(frame, latents)
    captions = [caption for caption in pairs.captions for _ in range(2)]
    return Stored(latents, pairs.places.reshape(-1, 1, 2), pairs.advantage.view(-1, 1), captions)


@torch.no_grad()
def draw(
    family: Family, stored: Stored, rows: list[int], config: Tune, generator: torch.Generator
) -> tuple[NoisyGroups, Conditioning]:
    """The groups `rows`, noised; their conditioning has one row a group. All noise is `generator`'s."""
    transition, times = family.transition(config.eta), config.num_inference_steps
    low, high = config.timestep_range
    count, shape, m = len(rows) * times, stored.latents.shape, stored.places.shape[1]
    prompt = torch.arange(len(rows)).repeat_interleave(times)
    t = torch.randint(low, min(high, transition.num_train_timesteps), (count,), generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    moments = stored.latents.moments(stored.places[rows].reshape(-1, 2)).view(len(rows), m, -1, *shape[1:])[prompt]
    posterior = torch.randn(count * m, *shape, generator=generator)
    x_0 = family.scale(sample_latents(moments.flatten(0, 1), posterior))
    x_t = transition.add_noise(x_0, noise.repeat_interleave(m, dim=0), t.repeat_interleave(m)).view(count, m, *shape)
    device, advantage = family.device, stored.advantage[rows][prompt]
    x_t, noise, t, prompt, advantage = (x.to(device) for x in (x_t, noise, t, prompt, advantage))
    noisy = NoisyGroups(x_t.to(family.dtype), noise, advantage, t, prompt)
    return noisy, family.encode_prompts([stored.captions[i] for i in rows])


def noise_errors(
    family: Family, transition: Transition, batch: NoisyGroups, conditioning: Conditioning
) -> torch.Tensor:
    """Mean squared error of the noise prediction of each image of a group, (N, M), of the model as it stands."""
    m = batch.x_t.shape[1]
    x_t, t = batch.x_t.flatten(0, 1), batch.t.repeat_interleave(m)
    _, noise = transition.pred_x0_eps(family.predict(x_t, t, conditioning.repeat(m)), x_t, t)
    error = noise.float().view(batch.x_t.shape) - batch.noise[:, None]
    return error.square().flatten(2).mean(2)
