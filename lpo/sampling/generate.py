"""Sampling pictures with guidance, one generator a picture, so that a picture depends on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from tqdm.auto import tqdm

from lpo.config import SamplerSettings
from lpo.errors import NotFinite
from lpo.families.family import Family
from lpo.images import to_uint8
from lpo.random import normal


def adapter_at(family: Family, settings: SamplerSettings, t: float) -> AbstractContextManager[None]:
    """Inside, the adapter is off if `settings.adapter_timesteps` leaves out the step that begins at t."""
    on = settings.adapter_timesteps
    return nullcontext() if on is None or on[0] <= t < on[1] else family.reference()


@torch.no_grad()
def sample(family: Family, prompts: Sequence[str], seeds: Sequence[int], settings: SamplerSettings) -> torch.Tensor:
    """Latents (N, C, h, w) of N prompts as one batch.

    All noise of image i comes from a generator seeded with seeds[i], so an image does not depend on its batch.

    Raises:
        NotFinite: if latents are NaN or infinite at the end.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> torch.Tensor:
        return normal(generators, *family.latent_shape).to(family.device, family.dtype)

    conditioning, null = family.encode_prompts(list(prompts)), family.null()
    transition = family.transition(settings.eta).to(family.device)
    starts, ends = family.steps(settings.num_inference_steps)
    x = draw()
    for now, after in zip(starts.tolist(), ends.tolist(), strict=True):
        t, s = (torch.full((len(x),), value, device=family.device) for value in (now, after))
        with adapter_at(family, settings, now):
            prediction = family.guided(x, t, conditioning, null, settings.guidance_scale)
        mean, std = transition.mean_std(prediction, x, t, s)
        x = mean + std * draw() if settings.eta > 0 else mean
    if not bool(x.isfinite().all()):
        broken = [prompts[i] for i in (~x.isfinite().flatten(1).all(1)).nonzero()[:, 0].tolist()]
        what = f"{len(broken)} of {len(x)} pictures became NaN or infinite while they were drawn, such as {broken[0]!r}"
        remedy = "set model.dtype to bf16 or fp32; if it stays, the LoRA or the model is broken"
        raise NotFinite(what, f"model.dtype {str(family.dtype).removeprefix('torch.')}", remedy)
    return x


def generate(
    family: Family, prompts: Sequence[str], seeds: Sequence[int], settings: SamplerSettings, label: str = "generate"
) -> np.ndarray:
    """Images (N, H, W, 3) uint8, drawn in batches, with a progress bar (none where `label` is empty)."""
    pictures = []
    starts = range(0, len(prompts), settings.batch_size)
    for i in tqdm(starts, desc=label, disable=not label, mininterval=2):
        part = slice(i, i + settings.batch_size)
        latents = sample(family, prompts[part], seeds[part], settings)
        pictures.append(to_uint8(family.decode(latents)))
    return np.concatenate(pictures)
