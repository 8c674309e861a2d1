"""params.yaml -> frozen, typed sections; every mistake at once, each with its YAML path.

    params = load_params("params.yaml")
    params.tune.threshold.low

A field is one line of lpo/sections: its name, its type and what it may hold. params.yaml holds every value, so nothing
has a default: a missing key is a mistake, and so is a key that no field asks for.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from lpo.config.data import Dataset, Distill, Encode, Filter, Margins, Model, Pretrain, Score, ScoreModels, TieMargins
from lpo.config.reader import Range, Reading, parse_yaml, read_fields, read_text
from lpo.config.results import (
    MARGINS,
    Evaluate,
    Ingest,
    JudgeModels,
    People,
    Promote,
    Publish,
    Report,
    Study,
    Tracking,
    VlmJudge,
    Vote,
)
from lpo.config.sampler import SamplerSettings
from lpo.config.training import Guard, RewardModel, Spm, Threshold, Tune, Window
from lpo.errors import ConfigError

__all__ = [
    "Dataset",
    "Distill",
    "Encode",
    "Evaluate",
    "Filter",
    "Guard",
    "Ingest",
    "JudgeModels",
    "Margins",
    "Model",
    "Params",
    "People",
    "Pretrain",
    "Promote",
    "Publish",
    "Report",
    "RewardModel",
    "SamplerSettings",
    "Score",
    "ScoreModels",
    "Spm",
    "Study",
    "Threshold",
    "TieMargins",
    "Tracking",
    "Tune",
    "VlmJudge",
    "Vote",
    "Window",
    "check_params",
    "load_params",
]


@dataclass(frozen=True)
class Params:
    seed: Annotated[int, Range(at_least=0, below=2**31)]
    model: Model
    pretrain: Pretrain
    distill: Distill
    dataset: Dataset
    score: Score
    filter: Filter
    encode: Encode
    reward: RewardModel
    spm: Spm
    tune: Tune
    evaluate: Evaluate
    report: Report
    vote: Vote
    ingest: Ingest
    promote: Promote
    publish: Publish
    study: Study
    tracking: Tracking


# What no field can say by itself: the first may be at most the second; of two weights one must be above zero.
AT_MOST = (
    ("reward.warmup_steps", "reward.steps"),
    ("spm.warmup_steps", "spm.steps"),
    ("tune.prompts_per_rollout", "tune.prompts"),
    ("tune.threshold.low", "tune.threshold.high"),
)
RENAMED = {"lrm": "reward", "lpo": "tune"}  # sections of params.yaml in versions before 0.2
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
    if renamed := [f"{old}: this section is called {new} now" for old, new in RENAMED.items() if old in tree]:
        raise ConfigError([f"{Path(path).name}: {mistake}" for mistake in renamed], str(path))
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
    if judges := values.get("evaluate.judges"):
        if len(set(judges)) < len(judges):
            yield f"evaluate.judges: each judge once, is {list(judges)}"
        source = values.get("dataset.source", "simulated")
        if "emoji" in judges and source != "simulated":
            yield f"evaluate.judges: emoji judges scenes of the emoji world only, dataset.source is {source}"
        if {"emoji", "aesthetic"} <= set(judges):
            yield "evaluate.judges: emoji and aesthetic both write the column aesthetic; leave one of them out"
        if "vlm" in judges and (url := values.get("evaluate.vlm.url")) is not None:
            where = urlsplit(url)
            if where.scheme not in ("http", "https") or not where.hostname:
                yield f"evaluate.vlm.url: must be an address such as http://127.0.0.1:8000/v1, is {url!r}"
            elif "@" in where.netloc or where.query:
                yield "evaluate.vlm.url: must hold no key: put it into the environment variable LPO_VLM_KEY"
    known = [name for names in MARGINS.values() for name in names]
    for name in values.get("promote.margins", {}):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
            yield f"promote.margins.{name}: no judge measures it; {hint}"
    if values.get("model.shard"):
        trainable = values.get("reward.trainable")
        if values.get("reward.pretrained", "") is None and trainable not in (None, "adapter"):
            needed = "must be adapter where model.shard is true (what else is trained or saved is whole)"
            yield f"reward.trainable: {needed}, is {trainable!r}"
        if values.get("model.compile"):
            yield "model.compile: must be false where model.shard is true, is true"
    if values.get("tune.validation_scorers") == (values.get("tune.blind"),):
        yield "tune.blind: must not be the only one of tune.validation_scorers, which choose the adapter"
    if values.get("dataset.repository") is not None and values.get("dataset.source") in ("simulated", "folder"):
        yield f"dataset.repository: must be null where dataset.source is {values['dataset.source']}"
    if values.get("dataset.source") == "folder" and values.get("dataset.path", "") is None:
        yield "dataset.path: must name a folder where dataset.source is folder, is empty"
    if values.get("publish.wandb") and values.get("tracking.wandb") != "online":
        yield f"tracking.wandb: must be online where publish.wandb is set, is {values.get('tracking.wandb')!r}"
    if (hub := values.get("publish.hub")) and hub.count("/") != 1:
        yield f"publish.hub: must be OWNER/NAME, is {hub!r}"
    if "filter.strategy" in values and "filter.strategies" in values:
        strategy, names = values["filter.strategy"], ["none", *values["filter.strategies"]]
        if strategy not in names:
            yield f"filter.strategy: must be one of {', '.join(names)}, is {strategy!r}"
