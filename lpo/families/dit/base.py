"""What every family with a diffusion transformer and flow matching shares.

    x_t = (1 - t / T) x_0 + (t / T) eps        the transformer predicts the velocity eps - x_0

A model says what differs: its text encoders and what becomes of their outputs (`encode_tokens`), the arguments of its
transformer's forward (`arguments`: packed latents, position ids, guidance), and the way back (`unpack`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from torch import nn

from lpo.diffusion.transitions import Flow
from lpo.errors import LpoError
from lpo.families import lora, parts
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family, Features

ADDED = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]  # attention of the text stream, as in Flow-GRPO


@dataclass
class Transformer(Family):
    """form: of the stochastic step, see `Flow`. layer: a reward reads its output, from 1; None is the last."""

    form: Literal["ddim", "renoise", "sde"]
    layer: int | None

    part = "transformer"
    lora_targets = [*lora.TARGETS, *ADDED]
    blocks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)  # lists of blocks, in the order of the forward
    last: ClassVar[str] = "norm_out"  # what the forward calls after the last block, with the hidden states first
    spaced_sigmas: ClassVar[bool] = True  # the pipeline starts from sigmas 1 to 1 / n, not from the scheduler's own

    @property
    def reward_targets(self) -> str:
        """What a reward runs: the first `layer` blocks."""
        kept = self.kept(self.denoiser, self.layer).items()
        blocks = [re.escape(f"{name}.{i}") for name, count in kept for i in range(count)]
        return rf"({'|'.join(blocks)})\..*\.({'|'.join(map(re.escape, self.lora_targets))})"

    def arguments(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """What the transformer's forward is given."""
        raise NotImplementedError

    def unpack(self, output: Any, latents: torch.Tensor) -> torch.Tensor:
        """What the forward returns -> the velocity, of the shape of `latents`."""
        return output

    def picture(self, hidden: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The picture's tokens (B, N, D) of the hidden states that leave a block."""
        return hidden

    def predict(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """The velocity eps - x0."""
        read = latents.to(self.dtype)
        return self.unpack(self.denoiser(**self.arguments(read, t, conditioning)).sample, read)

    def features(self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> Features:
        """Mean over the picture's tokens of what layer `layer` puts out, (B, D). Later layers are not run.

        The paper's reward of SD3-medium reads layer 18 of 24 (LPO, appendix B).
        """
        read = latents.to(self.dtype)
        with self.stopped(self.denoiser, self.layer):
            try:
                self.denoiser.forward(**self.arguments(read, t, conditioning))
            except Reached as reached:
                return [], self.picture(reached.hidden, read).mean(dim=1)
        raise AssertionError(f"{type(self.denoiser).__name__} does not call {self.last}")

    def transition(self, eta: float) -> Flow:
        return Flow(eta, self.form, scale=self.scheduler.config.num_train_timesteps)

    def steps(self, num_inference_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(t, s) of the scheduler's Euler steps as timesteps, (n,) float32 each; s = 0 after the last."""
        n = num_inference_steps
        own = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler.config)
        own.set_timesteps(n, sigmas=np.linspace(1, 1 / n, n) if self.spaced_sigmas else None, mu=self.shift(n))
        times = own.sigmas * own.config.num_train_timesteps
        return times[:-1], times[1:]

    def shift(self, num_inference_steps: int) -> float:
        """mu of a scheduler that shifts its times by the number of tokens; others do not read it."""
        config = self.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        return calculate_shift(self.picture_tokens, *(config[name] for name in names))

    @property
    def picture_tokens(self) -> int:
        """Of 2 x 2 latents each."""
        _, height, width = self.latent_shape
        return (height // 2) * (width // 2)

    @classmethod
    def kept(cls, transformer: Any, layer: int | None) -> dict[str, int]:
        """How many blocks of each list the first `layer` ones are. Raises LpoError for a layer that isn't there."""
        counts = {name: len(getattr(transformer, name)) for name in cls.blocks}
        depth, kept = sum(counts.values()), {}
        left = depth if layer is None else layer
        if not 1 <= left <= depth:
            raise LpoError(
                f"a reward reads one of the {depth} layers of this transformer, not {layer}",
                "params.yaml: reward.layer",
                f"choose 1 to {depth}; the paper takes 18 of 24",
            )
        for name, count in counts.items():
            kept[name] = min(left, count)
            left -= kept[name]
        return kept

    @classmethod
    def cut(cls, transformer: Any, layer: int) -> None:
        """Take away in place what `features` never runs; a forward then raises Reached."""
        for name, count in cls.kept(transformer, layer).items():
            setattr(transformer, name, getattr(transformer, name)[:count])
        transformer.set_submodule(cls.last, Stop())
        if hasattr(transformer, "proj_out"):
            transformer.proj_out = nn.Identity()

    @classmethod
    @contextmanager
    def stopped(cls, transformer: Any, layer: int | None) -> Iterator[None]:
        """Inside, a forward runs the first `layer` blocks and raises Reached."""
        whole = {name: getattr(transformer, name) for name in cls.blocks}
        last = transformer.get_submodule(cls.last)
        try:
            for name, count in cls.kept(transformer, layer).items():
                setattr(transformer, name, whole[name][:count])
            transformer.set_submodule(cls.last, Stop())
            yield
        finally:
            for name, blocks in whole.items():
                setattr(transformer, name, blocks)
            transformer.set_submodule(cls.last, last)

    @staticmethod
    def load_scheduler(source: str) -> Any:
        """The flow's Euler scheduler. Of a DPM-Solver's configuration the shift is read (`flow_shift`).

        Raises LpoError for settings under which a step is no Euler step of the flow.
        """
        config = parts.scheduler_config(FlowMatchEulerDiscreteScheduler, source)
        if "flow_shift" in config:
            config["shift"] = config["flow_shift"]
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        wrong = [name for name in ("invert_sigmas", "stochastic_sampling") if scheduler.config[name]]
        if wrong:
            what, where = f"unsupported scheduler settings: {', '.join(wrong)}", "scheduler/scheduler_config.json"
            raise LpoError(what, f"{source}/{where}", "take another model")
        return scheduler

    @classmethod
    def load(
        cls, path: str, device: torch.device, dtype: torch.dtype, reward: bool = False, vae: str | None = None,
        denoiser: str | None = None, resolution: int | None = None, shard: bool = False,
        form: Literal["ddim", "renoise", "sde"] = "ddim", layer: int | None = None,
    ) -> Self:  # fmt: skip
        """See `Family.load_parts`; `reward` also leaves out the layers after `layer`."""
        return cls.load_parts(
            path, device, dtype, reward, partial(cls.cut, layer=layer or 0), vae, denoiser, resolution, shard,
            scheduler=cls.load_scheduler(path), form=form, layer=layer,
        )  # fmt: skip


class Reached(Exception):
    """Carries the hidden states that left the chosen block out of the transformer's own forward."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Stop(nn.Module):
    """Stands in the place of the first layer after the blocks."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        raise Reached(hidden)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, (h / 2) (w / 2), 4 C): 2 x 2 latents a token, as FLUX and Qwen-Image have it."""
    return FluxPipeline._pack_latents(latents.contiguous(), *latents.shape)


def unpack(tokens: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """The way back from `pack`, to the shape of `latents`."""
    return FluxPipeline._unpack_latents(tokens, *latents.shape[2:], vae_scale_factor=1)


def words_of(ids: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """(B, L) bool: where a caption has words. On the meta device there is no tokenizer, and every place counts."""
    return torch.ones_like(ids, dtype=torch.bool) if tokenizer is None else ids != tokenizer.pad_token_id


def attended(words: torch.Tensor) -> torch.Tensor | None:
    """The attention mask of a text encoder. On the meta device transformers can't look at one."""
    return None if words.is_meta else words.long()


def mean_word(states: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """(B, D): the mean of states (B, L, D) over the words of a caption."""
    weights = words[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)
