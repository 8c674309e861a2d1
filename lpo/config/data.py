"""Sections of the model, its base, and the pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lpo.config.ranges import Count, Decay, Guidance, NotNegative, Positive, Share, ZeroOrMore
from lpo.config.reader import Range


@dataclass(frozen=True)
class Model:
    family: Literal["sd", "sdxl", "sd3", "flux", "flux2_klein", "qwen_image", "sana", "z_image"]
    path: str
    vae: str | None
    denoiser: str | None
    scheduler: Literal["ddim", "turbo", "lcm", "tcd"] | None
    prediction_type: Literal["epsilon", "v_prediction"] | None
    dtype: Literal["fp32", "bf16", "fp16"]
    device: Literal["auto", "cpu", "cuda"]
    resolution: Count | None
    gradient_checkpointing: bool
    compile: bool
    deterministic: bool
    shard: bool
    flow_step: Literal["ddim", "renoise", "sde"]


@dataclass(frozen=True)
class Pretrain:
    scenes: Count
    vae_steps: Count
    vae_batch_size: Count
    vae_learning_rate: Positive
    unet_steps: Count
    unet_batch_size: Count
    unet_learning_rate: Positive
    layout_steps: Count
    layout_learning_rate: Positive
    captions_steps: Count
    captions_learning_rate: Positive
    near_miss_share: Share
    ema_decay: Decay
    scorer_steps: Count
    scorer_batch_size: Count
    scorer_learning_rate: Positive
    gate_vae: Share
    gate_single: Share
    gate_plain: Annotated[tuple[float, float], Range(at_least=0, at_most=1, ascending=True)]
    gate_guided: Share
    checkpoint_every: Count


@dataclass(frozen=True)
class Distill:
    scenes: Count
    steps: Count
    batch_size: Count
    learning_rate: Positive
    guidance_scale: Guidance
    ema_decay: Decay
    checkpoint_every: Count


@dataclass(frozen=True)
class Dataset:
    source: Literal["simulated", "pickapic", "pickapic_v2", "hpdv2", "hpdv3", "folder"]
    path: str | None
    repository: str | None
    revision: str
    limit: Count | None
    keep_downloads: bool
    held_out_share: Annotated[float, Range(above=0, below=0.5)]
    are_different: Literal["required", "ignored"]
    prompts: str | None
    rendered_pairs: ZeroOrMore
    mirrored_share: Share
    sampled_prompts: ZeroOrMore
    images_per_prompt: Annotated[int, Range(at_least=2)]
    held_out_rendered_pairs: Count
    held_out_sampled_prompts: ZeroOrMore
    train_prompts: Count
    validation_prompts: Count
    test_prompts: Count
    guidance_scale: Guidance
    num_inference_steps: Count
    batch_size: Count
    alignment_weight: NotNegative
    aesthetic_weight: NotNegative
    temperature: Positive
    tie_margin: NotNegative
    flip_rate: Annotated[float, Range(at_least=0, at_most=0.5)]

    @property
    def utility_weights(self) -> tuple[float, float]:
        """Of alignment and of aesthetics."""
        return self.alignment_weight, self.aesthetic_weight

    @property
    def prompts_by_split(self) -> dict[str, int]:
        return {"train": self.train_prompts, "validation": self.validation_prompts, "test": self.test_prompts}


@dataclass(frozen=True)
class ScoreModels:
    """Folders or hub ids."""

    aesthetic: str
    aesthetic_head: str | None
    clip: str
    vqa: str
    vqa_vision: str | None
    vqa_tokenizer: str | None
    dtype: Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Score:
    scorers: str
    models: ScoreModels
    table: str | None
    batch_size: Count
    shard_size: Count


@dataclass(frozen=True)
class Margins:
    """One number a score; the gap of a pair is the winner's score less the loser's."""

    aesthetic: float
    clip: float
    vqa: float


@dataclass(frozen=True)
class TieMargins:
    """The largest |gap| of a tie that is kept, one a score."""

    aesthetic: NotNegative
    clip: NotNegative
    vqa: NotNegative


@dataclass(frozen=True)
class Filter:
    max_quarantined: Share
    max_tokens: Count
    long_captions: Literal["cut", "quarantine"]
    strategy: str
    strict: bool
    strategies: dict[str, Margins]
    ties: TieMargins


@dataclass(frozen=True)
class Encode:
    batch_size: Count
    shard_size: Count
