"""Sections of what is made of a tuned model: evaluation, report, promotion, studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lpo.config.ranges import Count, Guidance, NotNegative, Positive, Share, ZeroOrMore
from lpo.config.reader import Range
from lpo.config.sampler import SamplerSettings


@dataclass(frozen=True)
class JudgeModels:
    """Where each judge comes from: a folder, or the id of a repository on the hub."""

    pickscore: str
    clip_h: str
    imagereward: str
    imagereward_tokenizer: str
    hps: str
    geneval_detector: str
    geneval_clip: str


@dataclass(frozen=True)
class Evaluate:
    judges: tuple[
        Literal[
            "emoji", "pickscore", "imagereward", "hps_v2", "hps_v2_1", "geneval", "aesthetic", "clipscore", "vqascore"
        ],
        ...,
    ]  # fmt: skip
    tuned: str
    prompts_file: str | None
    prompts: Count
    images_per_prompt: Count
    num_inference_steps: Count
    guidance_scale: Guidance
    base_guidance_scale: Guidance
    eta: Share
    batch_size: Count
    judge_batch_size: Count
    judge_models: JudgeModels
    bootstrap: Count

    @property
    def sampler(self) -> SamplerSettings:
        """Settings of the tuned model's images, and of the base's that they are compared with."""
        return SamplerSettings(self.num_inference_steps, self.guidance_scale, self.eta, self.batch_size)


@dataclass(frozen=True)
class Report:
    examples: Count


@dataclass(frozen=True)
class Ingest:
    source: str


@dataclass(frozen=True)
class PromotionMargins:
    """How far below the opponent the lower end of a metric's change may lie, in the units of metrics/evaluate.json."""

    all_correct: NotNegative
    alignment: NotNegative
    aesthetics: NotNegative
    scorer_clip: NotNegative
    scorer_vqa: NotNegative
    scorer_aesthetic: NotNegative


@dataclass(frozen=True)
class Promote:
    win_rate_low: Share
    margins: PromotionMargins
    keep: ZeroOrMore


@dataclass(frozen=True)
class Study:
    seconds: Positive
    snapshots: Annotated[int, Range(at_least=1)]
    prompts: Count
    seed: ZeroOrMore | None
    flip_pairs: Count


@dataclass(frozen=True)
class Tracking:
    wandb: Literal["offline", "online", "disabled"]
    project: str
