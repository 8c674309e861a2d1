"""The latents of a model: its VAE, and a fingerprint that tells whether two models share one latent space.

    x0 = (z - shift) scaling,  z ~ VAE(picture)          decode: VAE^-1(x0 / scaling + shift)

Shift and scaling are numbers, or one number a channel (and place in a patch) where the VAE's configuration has
latents_mean and latents_std.

A reward that reads latents can serve every model with the same latents (LPO paper, heterogeneous rewards: LRM-1.5
trains SD2.1). Files cannot say so: two releases of one VAE differ in names and number formats. What a VAE makes of a
fixed picture can.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL

from lpo import hub
from lpo.errors import LpoError, NotFinite
from lpo.families import vae as vaes
from lpo.families.parts import module, place

log = logging.getLogger(__name__)

TOLERANCE = 0.1  # of |a - b| / |a|: rounding and corrected releases lie below it, another VAE far above
PROBE_SIDE = 8  # latents


@dataclass(frozen=True)
class LatentSpace:
    """What two models must share. probe: scaled latents of a fixed picture, (C * 8 * 8,) numbers."""

    channels: int
    pixels_per_latent: int
    scaling_factor: float
    shift_factor: float
    probe: tuple[float, ...]


@dataclass(frozen=True)
class Codec:
    """A VAE with its numbers. `vae` is None in the backbone of a reward, which reads stored latents."""

    vae: Any
    config: Mapping[str, Any]  # what its config.json says
    device: torch.device
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        return vaes.channels(self.config)

    @property
    def pixels_per_latent(self) -> int:
        return vaes.pixels_per_latent(self.config)

    @property
    def scaling_factor(self) -> float:
        """The mean, where channels differ."""
        factor = self._shift_and_factor()[1]
        return float(factor.mean()) if isinstance(factor, torch.Tensor) else factor

    @property
    def shift_factor(self) -> float:
        """The mean, where channels differ."""
        shift = self._shift_and_factor()[0]
        return float(shift.mean()) if isinstance(shift, torch.Tensor) else shift

    def _shift_and_factor(self, latents: torch.Tensor | None = None) -> tuple[Any, Any]:
        """Numbers, or tensors (C, h, w) for these latents."""
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is None or std is None:
            return self.config.get("shift_factor") or 0.0, vaes.value(self.config, "scaling_factor")
        if latents is None:
            return torch.tensor(mean), 1 / torch.tensor(std)
        patch = math.isqrt(len(mean) // self.channels)  # 1, or a patch of FLUX.2: c, then row, then column of the patch
        times = 1, latents.shape[2] // patch, latents.shape[3] // patch
        values = [torch.tensor(v, dtype=torch.float32).view(-1, patch, patch).repeat(times) for v in (mean, std)]
        shift, std_ = (v.to(latents.device, latents.dtype) for v in values)
        return shift, 1 / std_

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> latent moments (N, 2 C, h, w): mean and log variance, unscaled."""
        assert self.vae is not None
        return self._finite(lambda x: vaes.moments(self.vae, x), images.to(self.device), "pictures")

    def scale(self, latents: torch.Tensor) -> torch.Tensor:
        """VAE latents -> latents of unit scale, which the denoiser reads."""
        shift, factor = self._shift_and_factor(latents)
        return (latents - shift) * factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Scaled latents (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]; without `clamp` as the VAE gives them."""
        assert self.vae is not None
        shift, factor = self._shift_and_factor(latents)
        pictures = self._finite(lambda z: vaes.pictures(self.vae, z), latents / factor + shift, "latents")
        return pictures.clamp(-1, 1) if clamp else pictures

    def _finite(self, run: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, name: str) -> torch.Tensor:
        """What the VAE makes of values. A batch that overflows in half precision is computed again in float32.

        The VAE returns to half precision afterwards, so that a result depends on its batch alone.

        Raises:
            NotFinite: where the values or, in float32, the result are NaN or infinite.
        """
        assert self.vae is not None
        result = run(values.to(self.vae.dtype))
        if result.is_meta or bool(result.isfinite().all()):
            return result
        if not bool(values.isfinite().all()):
            what = f"{int((~values.isfinite().flatten(1).all(1)).sum())} of {len(values)} {name} are NaN or infinite"
            remedy = "set model.dtype to bf16 or fp32; if it stays, the LoRA or the model is broken"
            raise NotFinite(what, f"the {name} that the VAE was given", remedy)
        if self.vae.dtype == torch.float32:
            raise NotFinite("the VAE gives NaN or infinity in float32", "params.yaml: model.vae", "take another VAE")
        half = self.vae.dtype
        log.warning("the VAE overflows in %s; this batch is computed in float32", str(half).removeprefix("torch."))
        self.vae.to(torch.float32)
        try:
            return self._finite(run, values, name)
        finally:
            self.vae.to(half)

    def numbers(self) -> LatentSpace:
        """What config.json says of the latents, without a fingerprint: no weights are needed."""
        return LatentSpace(self.channels, self.pixels_per_latent, self.scaling_factor, self.shift_factor, ())

    def space(self) -> LatentSpace:
        """Measure the fingerprint."""
        moments = self.encode(probe_picture(PROBE_SIDE * self.pixels_per_latent)).float()
        probe = self.scale(moments.chunk(2, dim=1)[0]).flatten().tolist()
        return replace(self.numbers(), probe=tuple(round(value, 4) for value in probe))


def space_of(values: Mapping[str, Any]) -> LatentSpace:
    """A space that was written as JSON."""
    return LatentSpace(**{**values, "probe": tuple(values["probe"])})


def load_codec(source: str, part: str, dtype: torch.dtype, device: torch.device, weights: bool = True) -> Codec:
    """The VAE of a source; without `weights` its numbers only."""
    root, where = place(source, part)
    try:
        config = dict(AutoencoderKL.load_config(root, **where))
    except (OSError, ValueError) as error:
        remedy = "name a folder or hub id with a VAE in it"
        raise hub.refusal(error, f"can't load vae: {error}", source, remedy) from error
    kind = vaes.kind(config)
    if kind not in vaes.KINDS:
        what = f"its VAE is an {kind}, not an {' or '.join(vaes.KINDS)}"
        raise LpoError(what, f"{source}/{part}".rstrip("/"), "set model.vae")
    upcast = dtype == torch.float16 and config.get("force_upcast", False)  # SDXL's own overflows in float16
    told = kind != "AutoencoderKLFlux2" or "latents_mean" in config  # where not, the weights know shift and scale
    vae = None
    if weights or not told:
        cls = getattr(diffusers, kind)
        vae = module(cls, source, part, torch.float32 if upcast else dtype, device)
    if not told:
        config |= vaes.batch_norm(vae)
    return Codec(vae if weights else None, config, device, dtype)


def check_channels(codec: Codec, read: int, path: str) -> None:
    """Raises LpoError unless the denoiser reads what the VAE makes."""
    if codec.channels != read:
        what = f"the VAE has {codec.channels} latent channels, the denoiser reads {read}"
        raise LpoError(what, path, "take both from one model")


def probe_picture(size: int) -> torch.Tensor:
    """A fixed picture (1, 3, size, size) in [-1, 1]: waves of three frequencies, and an edge."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    waves = torch.stack([(3 * x + y).sin(), (5 * y - x).cos(), (4 * x * y).sin()])
    return torch.where(x > 0.3, waves.flip(0), waves)[None]


def check_same(reward: LatentSpace | None, model: LatentSpace, where: str) -> None:
    """Refuse a reward whose latents are not the model's. Without a fingerprint of both, the numbers alone decide.

    Raises:
        LpoError: with the reason: other channels, another size, or another VAE.
    """
    if reward is None:
        raise LpoError("the reward does not say which latents it reads", where, "train it again: lpo reward")
    reason = ""
    if reward.channels != model.channels:
        reason = f"the reward reads latents of {reward.channels} channels, the model makes {model.channels}"
    elif reward.pixels_per_latent != model.pixels_per_latent:
        reason = f"a latent covers {reward.pixels_per_latent} pixels for the reward, {model.pixels_per_latent} here"
    elif not (reward.probe and model.probe):
        numbers = [(space.scaling_factor, space.shift_factor) for space in (reward, model)]
        if numbers[0] != numbers[1]:
            reason = f"the reward has another VAE: scaling and shift are {numbers[0]}, the model's {numbers[1]}"
    else:
        ours, theirs = torch.tensor(model.probe), torch.tensor(reward.probe)
        distance = float((ours - theirs).norm() / ours.norm())
        if not distance <= TOLERANCE:
            reason = (
                "the reward was trained on latents of another VAE: of one picture they make latents that differ by "
                f"{distance:.0%} (scaling factors {reward.scaling_factor:g} and {model.scaling_factor:g})"
            )
    if reason:
        raise LpoError(reason, where, "train the reward on this model's latents, or on a model with the same VAE")
