"""What the trainers and stages ask of a model, whatever its family.

    family = load_family(params.model)
    t, s = family.steps(20)
    prediction = family.guided(x, t, family.encode_prompts(["a cat"]), family.null(), 5.0)

Times t, s (B,) are timesteps of the model: whole numbers in [0, T) for diffusion, s = -1 after the last step; any
number in [0, T] for flow matching, where T = 1000 is pure noise and s = 0 the end of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from lpo.diffusion.guidance import classifier_free
from lpo.diffusion.transitions import Transition
from lpo.families import lora, parts, sharding
from lpo.families.conditioning import Conditioning, concatenate
from lpo.families.latent_space import Codec, check_channels, load_codec

Features = tuple[list[torch.Tensor], torch.Tensor]


class Family(Protocol):
    """A model's parts on one device, as the trainers see them. In a backbone of a reward `codec.vae` is None."""

    name: str
    pipeline: Any  # the diffusers class
    lora_targets: list[str]  # the layers that a policy's adapter changes
    scheduler: Any
    codec: Codec
    device: torch.device
    dtype: torch.dtype

    @property
    def reward_targets(self) -> Any:
        """The layers that a reward's adapter changes, as peft's target_modules."""

    @property
    def tokenizer(self) -> Any:
        """The first one, by which captions are measured."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""

    @property
    def pixels(self) -> int:
        """The side of a picture."""

    @property
    def tokens(self) -> int:
        """The longest caption in tokens, with start and end of text."""

    @property
    def token_columns(self) -> int:
        """L: the columns of `tokenize`."""

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels a latent covers along one side."""

    @property
    def denoiser(self) -> Any: ...

    def modules(self) -> Mapping[str, nn.Module]:
        """What a reward trains and stores, by the name of its folder; the denoiser comes first."""

    def tokenizers(self) -> Mapping[str, Any]: ...

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, those of several tokenizers side by side. Longer captions are cut."""

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """Token ids (B, L) -> Conditioning; gradients flow if they are enabled."""

    def encode_prompts(self, prompts: list[str]) -> Conditioning: ...

    def null(self) -> Conditioning:
        """What guidance is taken against, B = 1, as the family's pipeline has it."""

    def encode_images(self, images: torch.Tensor) -> torch.Tensor: ...

    def scale(self, latents: torch.Tensor) -> torch.Tensor: ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor: ...

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output for latents (B, C, h, w) at t (B,)."""

    def guided(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
    ) -> torch.Tensor: ...

    def features(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> Features:
        """What a reward reads, pooled over space: ([of each down block (B, C_i)], of the middle (B, C))."""

    def transition(self, eta: float) -> Transition: ...

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, s): where each of the n steps starts and ends, (n,) each, the first step first."""

    def add_lora(self, rank: int, seed: int) -> list[nn.Parameter]: ...

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the adapter is off."""

    def lora_state(self) -> dict[str, torch.Tensor]: ...

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None: ...

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the layout that `pipe.load_lora_weights(folder)` reads."""

    def load_lora(self, folder: Path) -> None:
        """Load and switch on a LoRA of a folder or a file, whoever wrote it (`lora.load`)."""


# The methods that are the same for every family. A family takes one in with `guided = guided` in its class.


def latent_shape(family: Family) -> tuple[int, int, int]:
    side = family.pixels // family.codec.pixels_per_latent
    return family.codec.channels, side, side


def pixels_per_latent(family: Family) -> int:
    return family.codec.pixels_per_latent


def encode_prompts(family: Family, prompts: list[str]) -> Conditioning:
    with torch.no_grad():
        return family.encode_tokens(family.tokenize(prompts))


def null(family: Family) -> Conditioning:
    return family.encode_prompts([""])


def encode_images(family: Family, images: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] -> latent moments (N, 2 C, h, w): mean and log variance, unscaled."""
    return family.codec.encode(images)


def scale(family: Family, latents: torch.Tensor) -> torch.Tensor:
    """VAE latents -> latents of unit scale, which the denoiser reads."""
    return family.codec.scale(latents)


def decode(family: Family, latents: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]."""
    return family.codec.decode(latents)


def guided(
    family: Family, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
) -> torch.Tensor:
    """Classifier-free guidance in one forward of 2 B. `null` has B = 1."""
    if scale == 1.0:
        return family.predict(latents, t, conditioning)
    both = concatenate(null.expand(len(latents)), conditioning)
    uncond, cond = family.predict(torch.cat([latents] * 2), torch.cat([t] * 2), both).chunk(2)
    return classifier_free(uncond, cond, scale)


def add_lora(family: Family, rank: int, seed: int) -> list[nn.Parameter]:
    return list(lora.add(family.denoiser, rank, seed, family.lora_targets).values())


def reference(family: Family) -> AbstractContextManager[None]:
    return lora.switched_off(*family.modules().values())


def lora_state(family: Family) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(family.denoiser)


def load_lora_state(family: Family, state: dict[str, torch.Tensor]) -> None:
    set_peft_model_state_dict(family.denoiser, state)


def load_lora(family: Family, folder: Path) -> None:
    lora.load(folder, family)


def tokenize_side_by_side(parts: Sequence[tuple[Any, int]], prompts: list[str]) -> torch.Tensor:
    """(B, sum of L) ids of (tokenizer, L) parts, each padded to its L."""
    ids = [
        tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        for tokenizer, length in parts
    ]
    return torch.cat(ids, dim=1)


def load_denoiser(
    cls: type[parts.M], part: str, path: str, device: torch.device, dtype: torch.dtype, reward: bool,
    shorten: Callable[[Any], Any], vae: str | None, denoiser: str | None, resolution: int | None, shard: bool,
) -> tuple[parts.M, Codec, int]:  # fmt: skip
    """(denoiser, codec, side of pictures) of a source. See `sd.load`; `shorten` serves a reward's denoiser."""
    shard = shard and dist.is_initialized()
    first = torch.device("cpu") if shard else device  # whole, it may be too large for the device
    net: Any = parts.module(cls, *parts.either(denoiser, path, part), dtype, first, shorten if reward else parts.whole)
    if shard:
        sharding.shard(net, device)
    codec = load_codec(*parts.either(vae, path, "vae"), dtype, device, weights=not reward)
    check_channels(codec, net.config.in_channels, path)
    return net, codec, resolution or net.config.sample_size * codec.pixels_per_latent
