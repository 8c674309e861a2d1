"""params.yaml -> frozen, typed sections; every mistake at once, each with its YAML path.

    params = load_params("params.yaml")
    params.lpo.threshold.low

A field is one line: its name, its type and what it may hold. params.yaml holds every value, so nothing has a default
here: a missing key is a mistake, and so is a key that no field asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from lpo.errors import ConfigError
from lpo.schema import Range, Reading, parse_yaml, read_fields, read_text

Count = Annotated[int, Range(at_least=1)]
ZeroOrMore = Annotated[int, Range(at_least=0)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Decay = Annotated[float, Range(at_least=0, below=1)]
Guidance = Annotated[float, Range(at_least=1)]  # 1 turns it off


@dataclass(frozen=True)
class Model:
    family: Literal["sd", "sdxl", "sd3"]
    path: str
    vae: str | None
    denoiser: str | None
    dtype: Literal["fp32", "bf16", "fp16"]
    device: Literal["auto", "cpu", "cuda"]
    resolution: Count | None
    gradient_checkpointing: bool
    compile: bool
    flow_step: Literal["ddim", "sde"]


@dataclass(frozen=True)
class Pretrain:
    scenes: Count
    vae_steps: Count
    vae_batch_size: Count
    vae_learning_rate: Positive
    unet_steps: Count
    unet_batch_size: Count
    unet_learning_rate: Positive
    ema_decay: Decay
    scorer_steps: Count
    scorer_batch_size: Count
    scorer_learning_rate: Positive
    gate_vae: Share
    gate_single: Share
    gate_pair: Annotated[tuple[float, float], Range(at_least=0, at_most=1, ascending=True)]
    checkpoint_every: Count


@dataclass(frozen=True)
class Dataset:
    source: Literal["simulated"]
    rendered_pairs: ZeroOrMore
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


@dataclass(frozen=True)
class Score:
    scorers: str
    batch_size: Count


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
    strategy: str
    strategies: dict[str, Margins]
    ties: TieMargins


@dataclass(frozen=True)
class Encode:
    batch_size: Count
    shard_size: Count


@dataclass(frozen=True)
class RewardTraining:
    """What the trainings of both rewards have in common."""

    steps: Count
    warmup_steps: ZeroOrMore
    batch_size: Count
    micro_batch_size: Count
    learning_rate: Positive
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
    patience: Count
    checkpoint_every: Count


@dataclass(frozen=True)
class Lrm(RewardTraining):
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
    clip: str
    trainable: Literal["full", "frozen"]


@dataclass(frozen=True)
class Threshold:
    schedule: Literal["constant", "sigma", "sigma_squared", "linear", "quantile"]
    low: Share
    high: Share


@dataclass(frozen=True)
class Guard:
    action: Literal["off", "flag", "stop"]
    reward_margin: NotNegative
    diversity_floor: NotNegative
    prompts: Count
    seeds: Annotated[int, Range(at_least=2)]


@dataclass(frozen=True)
class Lpo:
    method: Literal["lpo", "spo", "diffusion_dpo", "grpo"]
    reward: str
    prompts: Count
    prompts_per_rollout: Count
    num_inference_steps: Count
    eta: Annotated[float, Range(above=0, at_most=1)]  # without noise a step has no density
    guidance_scale: Guidance
    num_candidates: Annotated[int, Range(at_least=2)]
    continue_from: Literal["random", "best"]
    reward_timestep: Literal["current", "next"]
    threshold: Threshold
    timestep_range: Annotated[tuple[int, int], Range(at_least=0, ascending=True)]
    beta: Positive
    clip_epsilon: Annotated[float, Range(above=0, below=1)]
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
    checkpoint_every: Count
    guard: Guard


@dataclass(frozen=True)
class Evaluate:
    prompts: Count
    images_per_prompt: Count
    num_inference_steps: Count
    guidance_scale: Guidance
    base_guidance_scale: Guidance
    eta: Share
    batch_size: Count
    bootstrap: Count


@dataclass(frozen=True)
class Report:
    examples: Count


@dataclass(frozen=True)
class Tracking:
    wandb: Literal["offline", "online", "disabled"]
    project: str


@dataclass(frozen=True)
class Params:
    seed: Annotated[int, Range(at_least=0, below=2**31)]
    model: Model
    pretrain: Pretrain
    dataset: Dataset
    score: Score
    filter: Filter
    encode: Encode
    lrm: Lrm
    spm: Spm
    lpo: Lpo
    evaluate: Evaluate
    report: Report
    tracking: Tracking


# What no field can say by itself: the first may be at most the second; of two weights one must be above zero.
AT_MOST = (
    ("lrm.warmup_steps", "lrm.steps"),
    ("spm.warmup_steps", "spm.steps"),
    ("lpo.prompts_per_rollout", "lpo.prompts"),
    ("lpo.threshold.low", "lpo.threshold.high"),
)
NOT_BOTH_ZERO = (
    ("dataset.rendered_pairs", "dataset.sampled_prompts"),
    ("dataset.alignment_weight", "dataset.aesthetic_weight"),
)


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        LpoError: if the file is absent or is no YAML (a key given twice included).
        ConfigError: see `check_params`.
    """
    return check_params(parse_yaml(read_text(path), path), path)


def check_params(tree: dict[str, Any], path: str | Path) -> Params:
    """The sections that the mapping `tree` holds; `path` is the file that messages name.

    Raises:
        ConfigError: with all mistakes: unknown and missing keys, wrong types, values out of range, unknown choices.
    """
    reading = Reading()
    sections = read_fields(Params, tree, "", reading)
    mistakes = reading.mistakes + list(_relations(reading.values))
    if mistakes:
        raise ConfigError([f"{Path(path).name}: {mistake}" for mistake in mistakes], str(path))
    return Params(**sections)


def _relations(values: dict[str, Any]) -> Iterator[str]:
    """`values` holds, by YAML path, only what is right by itself."""
    for low, high in AT_MOST:
        if low in values and high in values and values[low] > values[high]:
            yield f"{low}: must be <= {high} ({values[high]:g}), is {values[low]:g}"
    for one, other in NOT_BOTH_ZERO:
        if values.get(one) == 0 and values.get(other) == 0:
            yield f"{one}: must be > 0 where {other} is 0, is 0"
    if "filter.strategy" in values and "filter.strategies" in values:
        strategy, names = values["filter.strategy"], ["none", *values["filter.strategies"]]
        if strategy not in names:
            yield f"filter.strategy: must be one of {', '.join(names)}, is {strategy!r}"
