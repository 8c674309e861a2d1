"""What the families with a UNet2DConditionModel share: its first half, which a latent reward model reads (LPO paper,
section 3.2), its sampler's steps, and loading its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

from lpo.diffusion.schedule import ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM
from lpo.families import lora, scheduler
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family, Features


def down_and_mid(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    t: torch.Tensor,
    prompt_embeds: torch.Tensor,
    added: Mapping[str, torch.Tensor] | None = None,
    guidance: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Spatial means of each down block's last residual before its downsampler, and of the mid block.

    latents (B, C, h, w), t (B,) -> ([(B, C_1), ..., (B, C_n)], (B, C_n)). SD1.5: 320, 640, 1280, 1280 and 1280,
    which are `down_block_res_samples[2, 5, 8, 11]` of the published LRM. The up blocks are not run, and may be absent.
    """
    emb = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=t), guidance)
    if added:
        aug = unet.get_aug_embed(emb=emb, encoder_hidden_states=prompt_embeds, added_cond_kwargs=dict(added))
        emb = emb if aug is None else emb + aug
    sample = unet.conv_in(latents)
    pooled: list[torch.Tensor] = []
    for block in unet.down_blocks:
        if getattr(block, "has_cross_attention", False):
            sample, residuals = block(hidden_states=sample, temb=emb, encoder_hidden_states=prompt_embeds)
        else:
            sample, residuals = block(hidden_states=sample, temb=emb)
        last = residuals[-1] if block.downsamplers is None else residuals[-2]
        pooled.append(last.mean(dim=(2, 3)))
    sample = unet.mid_block(sample, emb, encoder_hidden_states=prompt_embeds)
    return pooled, sample.mean(dim=(2, 3))


def drop_up_blocks(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Remove what `down_and_mid` never runs, in place: about 60 % of an SD1.5 U-Net."""
    unet.up_blocks = torch.nn.ModuleList()
    unet.conv_norm_out = unet.conv_act = None
    unet.conv_out = torch.nn.Identity()
    return unet


@dataclass
class UNet(Family):
    """A family with a U-Net and DDIM.

    embedded_guidance: what a U-Net is told that was distilled with the guidance scale as an input (LCM,
    arXiv 2310.04378, section 4.3); others read none.
    """

    embedded_guidance: float = field(default=1.0, kw_only=True)

    part = "unet"
    network = UNet2DConditionModel

    @property
    def reward_targets(self) -> str:
        return lora.HALF_UNET

    def added(self, conditioning: Conditioning) -> dict[str, torch.Tensor] | None:
        """What the U-Net adds to its time embedding."""
        return None

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The U-Net's prediction, of the scheduler's prediction_type."""
        states = conditioning.tensors["prompt_embeds"]
        latents = latents.to(self.dtype)
        more = {"added_cond_kwargs": self.added(conditioning), "timestep_cond": self.guidance_embedding(latents)}
        return self.denoiser(latents, t, states, **more).sample

    def guidance_embedding(self, latents: torch.Tensor) -> torch.Tensor | None:
        """(B, D) of w = embedded_guidance - 1, as the model's pipeline makes it; None where the U-Net reads none."""
        width = self.denoiser.config.time_cond_proj_dim
        if width is None:
            return None
        w = torch.full((len(latents),), self.embedded_guidance - 1, device=latents.device)
        return get_timestep_embedding(w, width, downscale_freq_shift=1, scale=1000).to(latents.dtype)

    def guided(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
    ) -> torch.Tensor:
        """Where the U-Net reads the guidance scale, one forward of B; else classifier-free guidance."""
        if self.denoiser.config.time_cond_proj_dim is None:
            return super().guided(latents, t, conditioning, null, scale)
        return replace(self, embedded_guidance=scale).predict(latents, t, conditioning)

    def features(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> Features:
        """Pooled down block and mid block features, see `down_and_mid`."""
        states = conditioning.tensors["prompt_embeds"]
        latents = latents.to(self.dtype)
        return down_and_mid(
            self.denoiser, latents, t, states, self.added(conditioning), self.guidance_embedding(latents)
        )

    def transition(self, eta: float) -> DDIM:
        return DDIM.from_scheduler(self.scheduler, eta)

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, s) of the sampler's steps, (n,) long each; s = -1 after the last."""
        ddim = self.scheduler
        return ddim_timesteps(ddim, num_inference_steps), previous_timesteps(ddim, num_inference_steps)

    @classmethod
    def load(
        cls, path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
        denoiser: str | None = None, resolution: int | None = None, shard: bool = False, sampler: str | None = None,
        prediction_type: str | None = None,
    ) -> Self:  # fmt: skip
        """See `Family.load_parts`, and `scheduler.load` for sampler and prediction_type.

        Raises LpoError also where the scheduler's settings are unsupported.
        """
        ddim = scheduler.load(path, sampler, prediction_type)
        return cls.load_parts(
            path, device, dtype, reward, drop_up_blocks, vae, denoiser, resolution, shard, scheduler=ddim,
            **cls.own_fields(path),
        )  # fmt: skip

    @classmethod
    def own_fields(cls, path: str) -> dict[str, Any]:
        """Fields that only this family has."""
        return {}
