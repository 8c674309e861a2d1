"""Stable Diffusion 1.x and 2.x, and the embedded base: one U-Net, one CLIP text encoder, DDIM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import CLIPTextModel, CLIPTokenizer

from lpo.diffusion.guidance import classifier_free
from lpo.diffusion.schedule import check_scheduler
from lpo.diffusion.transitions import DDIM
from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning, concatenate
from lpo.families.unet import down_and_mid, drop_up_blocks

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass
class SD:
    """A pipeline's parts on one device. `vae` is None in a backbone of a reward."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    vae: AutoencoderKL | None
    scaling_factor: float
    device: torch.device
    dtype: torch.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        size = self.unet.config.sample_size
        return self.unet.config.in_channels, size, size

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels a latent covers along one side."""
        assert self.vae is not None
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def tokens(self) -> int:
        """The longest caption in tokens, with start and end of text."""
        return self.tokenizer.model_max_length

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, padded; captions over the limit are cut, which the data contract rules out beforehand."""
        batch = self.tokenizer(
            prompts, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        )
        return batch.input_ids

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """Token ids (B, L) -> Conditioning; gradients flow if they are enabled."""
        output = self.text_encoder(ids.to(self.device))
        return Conditioning({"prompt_embeds": output.last_hidden_state}, output.pooler_output)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        with torch.no_grad():
            return self.encode_tokens(self.tokenize(prompts))

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> latent moments (N, 2 C, h, w): mean and log variance, unscaled."""
        assert self.vae is not None
        return self.vae.encode(images.to(self.device, self.dtype)).latent_dist.parameters

    def scale(self, latents: torch.Tensor) -> torch.Tensor:
        """VAE latents -> latents of unit scale, which the U-Net reads."""
        return latents * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]."""
        assert self.vae is not None
        return self.vae.decode(latents / self.scaling_factor).sample.clamp(-1, 1)

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The U-Net's prediction (of the scheduler's prediction_type) for latents (B, C, h, w) at t (B,)."""
        return self.unet(latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"]).sample

    def guided(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
    ) -> torch.Tensor:
        """Classifier-free guidance in one forward of 2 B. `null` is the empty prompt, B = 1."""
        if scale == 1.0:
            return self.predict(latents, t, conditioning)
        both = concatenate(null.expand(len(latents)), conditioning)
        uncond, cond = self.predict(torch.cat([latents] * 2), torch.cat([t] * 2), both).chunk(2)
        return classifier_free(uncond, cond, scale)

    def features(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled down block and mid block features for a reward, see `down_and_mid`."""
        return down_and_mid(self.unet, latents.to(self.dtype), t, conditioning.tensors["prompt_embeds"])

    def transition(self, eta: float) -> DDIM:
        return DDIM.from_scheduler(self.scheduler, eta)

    def add_lora(self, rank: int, seed: int) -> list[torch.nn.Parameter]:
        """Put a fresh adapter (alpha = rank, A gaussian, B zero) into the U-Net; its parameters, which alone train."""
        self.unet.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
            self.unet.add_adapter(config)
        return [p for p in self.unet.parameters() if p.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the adapter is off: the reference policy."""
        self.unet.disable_adapters()
        try:
            yield
        finally:
            self.unet.enable_adapters()

    def lora_state(self) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(self.unet)

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        set_peft_model_state_dict(self.unet, state)

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the layout that `pipe.load_lora_weights(folder)` reads."""
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)

    def load_lora(self, folder: Path) -> None:
        """Load and switch on an adapter written by `save_lora`."""
        if not (folder / "pytorch_lora_weights.safetensors").exists():
            raise LpoError("no LoRA here", str(folder), "name a folder with pytorch_lora_weights.safetensors in it")
        state, alphas = StableDiffusionPipeline.lora_state_dict(folder)
        StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=self.unet)


def load(path: str, device: torch.device, dtype: torch.dtype, reward: bool = False) -> SD:
    """Load a diffusers folder (or hub id). `reward` leaves out the VAE and the U-Net's up blocks.

    Raises LpoError where the folder is none, or its scheduler's settings are unsupported.
    """

    def part(cls, name: str, **options):  # type: ignore[no-untyped-def]
        try:
            return cls.from_pretrained(path, subfolder=name, **options)
        except (OSError, ValueError) as error:
            raise LpoError(f"can't load {name}: {error}", path, "run `lpo base`, or mend model.path") from error

    scheduler = part(DDIMScheduler, "scheduler")
    check_scheduler(scheduler.config)
    unet = part(UNet2DConditionModel, "unet", torch_dtype=dtype)
    if reward:
        drop_up_blocks(unet)
    vae_config = AutoencoderKL.load_config(path, subfolder="vae")
    vae = None if reward else part(AutoencoderKL, "vae", torch_dtype=dtype)
    if vae_config["latent_channels"] != unet.config.in_channels:
        raise LpoError(
            f"the VAE has {vae_config['latent_channels']} latent channels, the U-Net reads {unet.config.in_channels}",
            path,
            "take both from one model",
        )
    text_encoder = part(CLIPTextModel, "text_encoder", torch_dtype=dtype)
    for module in (unet, text_encoder, vae):
        if module is not None:
            module.to(device).requires_grad_(False).eval()
    tokenizer = part(CLIPTokenizer, "tokenizer")
    return SD(unet, text_encoder, tokenizer, scheduler, vae, vae_config["scaling_factor"], device, dtype)
