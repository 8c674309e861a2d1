"""Settings of the DDIM sampler, which several sections of params.yaml give."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerSettings:
    """batch_size: images denoised together; an image does not depend on it, up to rounding.

    adapter_timesteps: [low, high), outside of which the adapter is off; None: it is always on.
    """

    num_inference_steps: int
    guidance_scale: float
    eta: float
    batch_size: int
    adapter_timesteps: tuple[int, int] | None = None
