"""Sections of the rewards and of the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lpo.config.ranges import Count, Decay, Guidance, NotNegative, Positive, Share, ZeroOrMore
from lpo.config.reader import Range


@dataclass(frozen=True)
class RewardTraining:
    """What the trainings of both rewards have in common."""

    seed: ZeroOrMore | None
    steps: Count
    warmup_steps: ZeroOrMore
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Positive
    learning_rate_schedule: Literal["linear", "warmup_decay"]
    weight_decay: NotNegative
    max_grad_norm: Positive | None
    guidance_scale: Guidance
    dtype: Literal["fp32", "bf16", "fp16"]
    timesteps: Literal["uniform", "grid"]
    shared_noise: bool
    example_weights: bool
    likelihood: Literal["bradley_terry", "thurstone"]
    variance_offset: Positive
    validate_every: Count
    validation_pairs: Count
    patience: Count
    checkpoint_every: Count


@dataclass(frozen=True)
class RewardModel(RewardTraining):
    pretrained: str | None
    base: str | None
    features: Literal["multi_scale", "mid"]
    layer: Count | None
    text_projection: str
    trainable: Literal["full", "denoiser", "adapter", "frozen"]
    adapter_rank: Count
    embedding_dim: Count
    ensemble_timesteps: tuple[ZeroOrMore, ZeroOrMore, ZeroOrMore]
    ensemble_draws: Count


@dataclass(frozen=True)
class Spm(RewardTraining):
    pretrained: str | None
    clip: str
    tokenizer: str | None
    trainable: Literal["full", "frozen"]


@dataclass(frozen=True)
class Threshold:
    schedule: Literal["constant", "sigma", "sigma_squared", "linear", "linear_over_steps", "quantile"]
    low: Share
    high: Share


@dataclass(frozen=True)
class Guard:
    action: Literal["off", "flag", "stop"]
    reward_margin: NotNegative
    diversity_floor: NotNegative
    drift_limit: Positive
    prompts: Count
    seeds: Annotated[int, Range(at_least=2)]


@dataclass(frozen=True)
class Nft:
    mixing: Positive
    old_decay: Decay
    reward_timesteps: tuple[ZeroOrMore, ZeroOrMore, ZeroOrMore]


@dataclass(frozen=True)
class Window:
    steps: Count
    every: Count


@dataclass(frozen=True)
class Tune:
    method: Literal["lpo", "spo", "grpo", "mixgrpo", "dense_grpo", "diffusion_dpo", "smpo", "kto", "nft", "dgpo"]
    reward: str
    rewards: dict[str, Positive]
    prompts: Count
    prompts_per_rollout: Count
    num_inference_steps: Count
    eta: Annotated[float, Range(above=0, at_most=1)]  # without noise a step has no density
    guidance_scale: Guidance
    num_candidates: Annotated[int, Range(at_least=2)]
    continue_from: Literal["random", "best"]
    reward_timestep: Literal["current", "next", "look_ahead"]
    threshold: Threshold
    timestep_range: Annotated[tuple[int, int], Range(at_least=0, ascending=True)]
    timestep_weights: Literal["none", "balanced"]
    beta: Positive
    kl_weight: NotNegative
    clip_epsilon: Annotated[float, Range(above=0, below=1)]
    nft: Nft
    window: Window
    logprob_reduction: Literal["mean", "sum"]
    lora_rank: Count
    learning_rate: Positive
    batch_size: Count
    micro_batch_size: Count
    epochs_per_rollout: Count
    weight_decay: NotNegative
    max_grad_norm: Positive | None
    ema_decay: Decay
    validate_every: Count
    validation_prompts: Count
    blind: Literal["aesthetic", "clip", "vqa", "pickscore", "imagereward", "hps_v2", "hps_v2_1"] | None
    validators: str | None
    validation_scorers: tuple[Literal["aesthetic", "clip", "vqa"], ...]
    checkpoint_every: Count
    guard: Guard

    @property
    def smallest_rollout(self) -> int:
        """Prompts of the last rollout, which has what is left: as many processes at most can share all rollouts."""
        return self.prompts % self.prompts_per_rollout or self.prompts_per_rollout
