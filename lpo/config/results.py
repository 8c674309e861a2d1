"""Sections of what is made of a tuned model: evaluation, report, promotion, studies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

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
    hpsv3: str
    hpsv3_base: str
    geneval_detector: str
    geneval_clip: str


@dataclass(frozen=True)
class VlmJudge:
    """A vision-language model behind an HTTP API (lpo/scorers/vlm.py)."""

    url: str
    model: str
    aspect: Literal["overall", "alignment", "aesthetics"]
    max_requests: Count
    max_tokens: Count
    temperature: NotNegative | None


JudgeName = Literal[
    "emoji", "pickscore", "imagereward", "hps_v2", "hps_v2_1", "hpsv3", "vlm", "geneval", "aesthetic", "clipscore",
    "vqascore",
]  # fmt: skip


@dataclass(frozen=True)
class Evaluate:
    judges: tuple[JudgeName, ...]
    tuned: str
    prompts_file: str | None
    prompts: Count
    images_per_prompt: Count
    num_inference_steps: Count
    guidance_scale: Guidance
    base_guidance_scale: Guidance
    eta: Share
    adapter_timesteps: Annotated[tuple[int, int], Range(at_least=0, ascending=True)] | None
    batch_size: Count
    judge_batch_size: Count
    judge_models: JudgeModels
    vlm: VlmJudge
    bootstrap: Count

    @property
    def sampler(self) -> SamplerSettings:
        """Settings of the tuned model's images, and of the base's that they are compared with."""
        return SamplerSettings(
            self.num_inference_steps, self.guidance_scale, self.eta, self.batch_size, self.adapter_timesteps
        )


@dataclass(frozen=True)
class Report:
    examples: Count
    gpu_hour_price: NotNegative | None


@dataclass(frozen=True)
class Ingest:
    source: str


@dataclass(frozen=True)
class Vote:
    """What `lpo vote` shows, and which votes count (lpo/votes/questions.py, lpo/votes/consistency.py).

    against: base, promoted, tuned (another sample of it), or a folder of pictures (lpo/votes/folder.py).
    """

    against: str
    pictures: Literal["two", "four"]
    voters_per_pair: Count
    held_out_share: Share
    check_share: Annotated[float, Range(at_least=0, at_most=0.5)]
    min_consistency: Share


# What the gate of a promotion can ask of each judge; each name is a key of promote.margins.
MARGINS: dict[str, tuple[str, ...]] = {
    name: ("all_correct", "alignment", "aesthetics", "scorer_clip", "scorer_vqa", "scorer_aesthetic")
    if name == "emoji" else (name,)
    for name in get_args(JudgeName)
}  # fmt: skip


@dataclass(frozen=True)
class People:
    """votes: that a comparison needs, 0 if people are not asked."""

    votes: ZeroOrMore
    win_rate_low: Share


@dataclass(frozen=True)
class Promote:
    """margins: how far below zero the lower end of a change may lie, in the units of metrics/evaluate.json.

    A margin holds where its judge is among `evaluate.judges`. What has no margin is not asked.
    """

    win_rate_low: Share
    margins: dict[str, NotNegative]
    people: People
    keep: ZeroOrMore


@dataclass(frozen=True)
class Publish:
    """Where a promoted model goes. Addresses and credentials are in the environment (docs/operations.md)."""

    hub: str | None
    mlflow: str | None
    wandb: str | None
    folder: str | None


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
