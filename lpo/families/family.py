"""A model as the trainers and stages see it, whatever its architecture.

    family = load_family(params.model)
    t, s = family.steps(20)
    prediction = family.guided(x, t, family.encode_prompts(["a cat"]), family.null(), 5.0)

Times t, s (B,) are timesteps of the model: whole numbers in [0, T) for diffusion, s = -1 after the last step; any
number in [0, T] for flow matching, where T = 1000 is pure noise and s = 0 the end of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

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


class Encoder(NamedTuple):
    """A text encoder of a pipeline: its classes, and how many tokens it reads (None: as its configuration says)."""

    model: Any
    tokenizer: Any
    tokens: int | None = None
    optional: bool = False  # the pipeline can do without


@dataclass
class Family:
    """A model's parts on one device. In a backbone of a reward `codec.vae` is None.

    A subclass fills in the class variables and the five methods that raise NotImplementedError.

    Args:
        text_encoders, words: the encoders and their tokenizers, by folder, in the order of `encoders`.
        pixels: the side of a picture.
    """

    denoiser: Any
    text_encoders: Mapping[str, Any]
    words: Mapping[str, Any]
    scheduler: Any
    codec: Codec
    pixels: int
    device: torch.device
    dtype: torch.dtype

    name: ClassVar[str]  # model.family in params.yaml
    pipeline: ClassVar[Any]  # the diffusers class
    network: ClassVar[Any]  # the class of the denoiser
    part: ClassVar[str]  # the folder of the denoiser
    encoders: ClassVar[Mapping[str, Encoder]]  # by what follows "text_encoder" and "tokenizer" in the folder's name
    lora_targets: ClassVar[list[str]] = lora.TARGETS  # the layers that a policy's adapter changes
    null_prompt: ClassVar[str] = ""  # what guidance is taken against
    packed: ClassVar[int] = 1  # latents that the denoiser reads as one token's channels

    @property
    def reward_targets(self) -> Any:
        """The layers that a reward's adapter changes, as peft's target_modules."""
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        """The first one, by which captions are measured."""
        return self.words["tokenizer"]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        side = self.pixels // self.codec.pixels_per_latent
        return self.codec.channels, side, side

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels a latent covers along one side."""
        return self.codec.pixels_per_latent

    @property
    def lengths(self) -> list[int]:
        """Tokens that each text encoder reads."""
        found = [self.encoders[name.removeprefix("text_encoder")].tokens for name in self.text_encoders]
        configs = [encoder.config for encoder in self.text_encoders.values()]
        return [n or config.max_position_embeddings for n, config in zip(found, configs, strict=True)]

    @property
    def tokens(self) -> int:
        """The longest caption in tokens, with start and end of text."""
        return self.lengths[0]

    @property
    def token_columns(self) -> int:
        """L: the columns of `tokenize`."""
        return sum(self.lengths)

    def modules(self) -> Mapping[str, nn.Module]:
        """What a reward trains and stores, by the name of its folder; the denoiser comes first."""
        return {self.part: self.denoiser, **self.text_encoders}

    def tokenizers(self) -> Mapping[str, Any]:
        return self.words

    def text(self, prompt: str) -> str:
        """What the tokenizers are given for a prompt: a chat template for encoders that are language models."""
        return prompt

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        """(B, L) token ids, those of several tokenizers side by side. Longer captions are cut."""
        texts = [self.text(prompt) for prompt in prompts]
        return tokenize_side_by_side([*zip(self.words.values(), self.lengths, strict=True)], texts)

    def columns(self, ids: torch.Tensor) -> Sequence[torch.Tensor]:
        """The ids of each text encoder, on the device."""
        return ids.to(self.device).split(self.lengths, dim=1)

    def encode_tokens(self, ids: torch.Tensor) -> Conditioning:
        """Token ids (B, L) -> Conditioning; gradients flow if they are enabled."""
        raise NotImplementedError

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        with torch.no_grad():
            return self.encode_tokens(self.tokenize(prompts))

    def null(self) -> Conditioning:
        """What guidance is taken against, B = 1, as the family's pipeline has it."""
        return self.encode_prompts([self.null_prompt])

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> latent moments (N, 2 C, h, w): mean and log variance, unscaled."""
        return self.codec.encode(images)

    def scale(self, latents: torch.Tensor) -> torch.Tensor:
        """VAE latents -> latents of unit scale, which the denoiser reads."""
        return self.codec.scale(latents)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (N, C, h, w) -> pictures (N, 3, H, W) in [-1, 1]."""
        return self.codec.decode(latents)

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The denoiser's output for latents (B, C, h, w) at t (B,)."""
        raise NotImplementedError

    def guided(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning, scale: float
    ) -> torch.Tensor:
        """Classifier-free guidance in one forward of 2 B. `null` has B = 1."""
        if scale == 1.0:
            return self.predict(latents, t, conditioning)
        both = concatenate(null.expand(len(latents)), conditioning)
        uncond, cond = self.predict(torch.cat([latents] * 2), torch.cat([t] * 2), both).chunk(2)
        return self.combine(uncond, cond, scale)

    def combine(self, uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
        return classifier_free(uncond, cond, scale)

    def features(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> Features:
        """What a reward reads, pooled over space: ([of each down block (B, C_i)], of the middle (B, C))."""
        raise NotImplementedError

    def transition(self, eta: float) -> Transition:
        raise NotImplementedError

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, s): where each of the n steps starts and ends, (n,) each, the first step first."""
        raise NotImplementedError

    def add_lora(self, rank: int, seed: int) -> list[nn.Parameter]:
        return list(lora.add(self.denoiser, rank, seed, self.lora_targets).values())

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the adapter is off."""
        return lora.switched_off(*self.modules().values())

    def lora_state(self) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(self.denoiser)

    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        set_peft_model_state_dict(self.denoiser, state)

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the layout that `pipe.load_lora_weights(folder)` reads."""
        layers = {f"{self.part}_lora_layers": state}
        self.pipeline.save_lora_weights(folder, **layers, safe_serialization=True)

    def load_lora(self, folder: Path) -> None:
        """Load and switch on a LoRA of a folder or a file, whoever wrote it (`lora.load`)."""
        lora.load(folder, self)

    @classmethod
    def load_parts(
        cls, path: str, device: torch.device, dtype: torch.dtype, reward: bool, shorten: Callable[[Any], Any],
        vae: str | None, denoiser: str | None, resolution: int | None, shard: bool, **fields: Any,
    ) -> Self:  # fmt: skip
        """Load a diffusers folder (or hub id).

        Args:
            reward: leave out the VAE, and with `shorten` what a reward never runs of the denoiser.
            vae, denoiser: another source for these parts.
            resolution: the side of pictures, else the model's own.
            shard: leave each of several processes its part of the denoiser.
            fields: of the subclass.

        Raises:
            LpoError: where the folder is none, or the VAE makes other latents than the denoiser reads.
        """
        shard = shard and dist.is_initialized()
        first = torch.device("cpu") if shard else device  # whole, it may be too large for the device
        source = parts.either(denoiser, path, cls.part)
        net: Any = parts.module(cls.network, *source, dtype, first, shorten if reward else parts.whole)
        if shard:
            sharding.shard(net, device)
        codec = load_codec(*parts.either(vae, path, "vae"), dtype, device, weights=not reward)
        check_channels(codec, net.config.in_channels // cls.packed, path)
        side = getattr(net.config, "sample_size", None) or 128  # of FLUX and its like in diffusers' pipelines
        encoders, words = {}, {}
        for suffix, (kind, words_kind, _, optional) in cls.encoders.items():
            if not optional or parts.has(path, f"text_encoder{suffix}"):
                name, words_name = f"text_encoder{suffix}", f"tokenizer{suffix}"
                encoders[name] = parts.module(kind, path, name, dtype, device)
                words[words_name] = parts.tokenizer(words_kind, path, words_name, device)
        pixels = resolution or side * codec.pixels_per_latent
        return cls(
            denoiser=net, text_encoders=encoders, words=words, codec=codec, pixels=pixels, device=device, dtype=dtype,
            **fields,
        )  # fmt: skip


def tokenize_side_by_side(parts: Sequence[tuple[Any, int]], texts: list[str]) -> torch.Tensor:
    """(B, sum of L) ids of (tokenizer, L) parts, each padded to its L."""
    ids = [
        tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        for tokenizer, length in parts
    ]
    return torch.cat(ids, dim=1)
