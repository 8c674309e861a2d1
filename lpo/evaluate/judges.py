"""The judges that look at finished pictures. A judge is a function from pictures and prompts to named columns.

    judges = judges_of(config, score, weights, model, tasks, reward)
    columns = judges[0].load()(pictures, prompts)       {"all_correct": (N,), ...}

    emoji               alignment, aesthetic, utility, all_correct    a program that knows what was asked
    scorers             clip, vqa, aesthetic_score                    the scorers of MPCF, beside emoji
    a published judge   a column with its name                        lpo/scorers/judges.py
    vlm                 vlm                                           a model behind an HTTP API: lpo/scorers/vlm.py
    lrm                 lrm                                           the latent reward model, where there is one

More is better in every column. `Judge.identity` says what decides the columns: equal identities give equal scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lpo.config import Evaluate, JudgeModels, Model, Score, ScoreModels, VlmJudge
from lpo.emoji.oracle import verdict_frame
from lpo.emoji.scenes import CANVAS, parse
from lpo.errors import LpoError
from lpo.evaluate.reward_judge import load_reward_judge
from lpo.families import device_of, load_family
from lpo.files import file_hash, folder_hash
from lpo.hub import file_of
from lpo.images import to_tensor
from lpo.scorers import vlm
from lpo.scorers.judges import Scorer, load_judge, sources_of
from lpo.scorers.published import load_scorers

Columns = Mapping[str, Any]  # (N,) each: a tensor, an array or a series
Look = Callable[[Sequence[Image.Image], Sequence[str]], Columns]
SCORERS = {"clip": "clip", "vqa": "vqa", "aesthetic_score": "aesthetic"}  # column -> name among the scorers of MPCF
MPCF = ("aesthetic", "clipscore", "vqascore")  # the published scorers, as judges


@dataclass(frozen=True)
class Judge:
    """identity: JSON-able. batch_size: of one call; None: a whole part of the cache. may_lack: NaN is no error."""

    name: str
    load: Callable[[], Look]
    identity: dict[str, Any]
    batch_size: int | None = None
    may_lack: bool = False


def judges_of(
    config: Evaluate, score: Score, weights: tuple[float, float], model: Model, tasks: Mapping[str, str],
    reward: Path | None,
) -> list[Judge]:  # fmt: skip
    """All judges of an evaluation: those that `config.judges` names, then the reward.

    Args:
        weights: of alignment and aesthetics in the utility of the emoji oracle.
        tasks: prompt -> its GenEval task, as JSON text.
        reward: the folder of the latent reward model, None without one.
    """
    judges = []
    for name in config.judges:
        if name == "emoji":
            identity: dict[str, Any] = {"scorers": content(score.scorers)}
            if score.scorers == "published":
                identity["models"] = asdict(score.models)
            judges += [
                Judge("emoji", partial(emoji, weights), {"weights": weights}),
                Judge("scorers", partial(mpcf_scorers, score, model), identity),
            ]
            continue
        if name == "vlm":
            question = vlm.question(config.vlm.aspect, "")
            identity = {"model": config.vlm.model, "question": question, "max_tokens": config.vlm.max_tokens}
            judges.append(Judge(name, partial(server, config.vlm), identity, config.judge_batch_size, may_lack=True))
            continue
        identity = {source: content(source) for source, _ in sources_of(name, config.judge_models, score.models)}
        if name in MPCF:
            identity["models"] = asdict(score.models)  # the number format, the tokenizer
            identity["head"] = content(head) if (head := score.models.aesthetic_head) else None
        if name == "geneval":
            identity["tasks"] = dict(tasks)
        load = partial(published, name, config.judge_models, score.models, tasks, model)
        judges.append(Judge(name, load, identity, config.judge_batch_size))
    if reward is not None:
        judges.append(Judge("lrm", partial(lrm, reward, model), {"lrm": content(reward)}))
    return judges


def emoji(weights: tuple[float, float]) -> Look:
    """The oracle of the emoji world (lpo/emoji/oracle.py). It reads prompts of the grammar only."""
    return lambda pictures, prompts: dict(verdict_frame(_pixels(pictures), prompts, weights))


def mpcf_scorers(score: Score, model: Model) -> Look:
    """The scorers that filtered the pairs and chose the checkpoint: a second opinion, not an independent one."""
    scorers = load_scorers(score, device_of(model))

    def columns(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Columns:
        scores = scorers.score(to_tensor(_pixels(pictures)), list(prompts))
        return {column: scores[name] for column, name in SCORERS.items()}

    return columns


def published(name: str, models: JudgeModels, scorers: ScoreModels, tasks: Mapping[str, str], model: Model) -> Look:
    return _column(name, load_judge(name, models, scorers, tasks, device_of(model)))


def server(config: VlmJudge) -> Look:
    return _column("vlm", vlm.Vlm(config))


def lrm(folder: Path, model: Model) -> Look:
    return _column("lrm", load_reward_judge(folder, model))


def _column(name: str, scorer: Scorer) -> Look:
    return lambda pictures, prompts: {name: scorer.score(pictures, prompts)}


def _pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    """(N, H, W, 3) uint8 of pictures of one size."""
    return np.stack([np.array(picture.convert("RGB")) for picture in pictures])


def check_judges(
    config: Evaluate, score: Score, model: Model, prompts: Sequence[str], tasks: Mapping[str, str]
) -> None:
    """Check that every judge is here and can judge these prompts. What is only on the hub is downloaded.

    Raises:
        LpoError: with everything that is missing.
    """
    wrong = _check_emoji(model, prompts) if "emoji" in config.judges else []
    for name in config.judges:
        for source, file in _files(name, config, score):
            try:
                file_of(source, file)
            except LpoError as error:
                wrong.append(f"{name}: {source}: {error.what}")
    if "vlm" in config.judges and (said := vlm.problem(config.vlm)):
        wrong.append(said)
    if "geneval" in config.judges and (without := [prompt for prompt in prompts if prompt not in tasks]):
        wrong.append(f"geneval: {len(without)} of {len(prompts)} prompts have no task (tag, include)")
    if wrong:
        where = "params.yaml: evaluate.judges, judge_models, vlm, prompts_file; score.models"
        raise LpoError("the judges are not ready:\n  " + "\n  ".join(wrong), where, "get them, or leave them out")


def _files(name: str, config: Evaluate, score: Score) -> list[tuple[str, str]]:
    """(source, file) of what a judge loads; emoji itself needs no files, but the scorers beside it do."""
    if name != "emoji":
        return sources_of(name, config.judge_models, score.models)
    if score.scorers != "published":
        return [(score.scorers, "scorers.safetensors")]
    return [file for one in MPCF for file in sources_of(one, config.judge_models, score.models)]


def _check_emoji(model: Model, prompts: Sequence[str]) -> list[str]:
    wrong, foreign = [], []
    for prompt in prompts:
        try:
            parse(prompt)
        except KeyError:
            foreign.append(prompt)
    if foreign:
        wrong.append(f"emoji: {len(foreign)} of {len(prompts)} prompts describe no emoji scene, such as {foreign[0]!r}")
    side = load_family(model, device=torch.device("meta")).pixels
    if side != CANVAS:
        wrong.append(f"emoji: {model.path} draws {side} pixels, the emoji world has {CANVAS}")
    return wrong


def content(source: str | Path) -> str:
    """What stands for a model in a key: the hash of a folder or file, the id of a hub repository."""
    path = Path(source)
    return folder_hash(path) if path.is_dir() else file_hash(path) if path.is_file() else str(source)
