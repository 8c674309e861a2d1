"""Judges of real pictures: which files they need, and how one is loaded.

A judge has `score(pictures, prompts) -> (N,)`, more is better. They are large, so one is in memory at a time.

    pickscore          exp(logit_scale) cos, about 20 to 23       lpo/scorers/pickscore.py
    imagereward        standardised, about -2 to 2                lpo/scorers/imagereward.py
    hps_v2, hps_v2_1   100 cos, about 24 to 32                    lpo/scorers/hps.py
    geneval            1 or 0: all of the task is right           lpo/scorers/geneval.py
    aesthetic          LAION's predictor, about 4 to 7            lpo/scorers/aesthetic.py
    clipscore          cos of CLIP ViT-H/14                       lpo/scorers/clip_score.py
    vqascore           P(yes: it shows the prompt), 0 to 1        lpo/scorers/vqa.py

The last three are the scorers of MPCF and read score.models: they chose the pairs, so alone they are no blind jury.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL import Image

from lpo.config import Params
from lpo.errors import LpoError
from lpo.families import DTYPES
from lpo.hub import file_of
from lpo.scorers import aesthetic, clip_score, detector, hps, imagereward, pickscore, vqa


class Judge(Protocol):
    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor: ...


class Aesthetic:
    """LAION's predictor, which does not read the prompt."""

    def __init__(self, scorer: aesthetic.Aesthetic) -> None:
        self.scorer = scorer

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        return self.scorer.score(pictures)


def load_judge(name: str, params: Params, tasks: Mapping[str, str], device: torch.device) -> Judge:
    """The judge `name`; `tasks` maps the prompts of GenEval to their tasks. Raises LpoError where a part is missing."""
    models, scorers = params.evaluate.judge_models, params.score.models
    dtype = DTYPES[scorers.dtype]
    match name:
        case "pickscore":
            return pickscore.load(models.pickscore, models.clip_h, device)
        case "imagereward":
            return imagereward.load(models.imagereward, models.imagereward_tokenizer, device)
        case "hps_v2" | "hps_v2_1":
            return hps.load(name, models.hps, models.clip_h, device)
        case "geneval":
            return detector.load(models.geneval_detector, models.geneval_clip, tasks, device)
        case "aesthetic":
            return Aesthetic(aesthetic.load(scorers.aesthetic, scorers.aesthetic_head, device, dtype))
        case "clipscore":
            return clip_score.load(scorers.clip, device, dtype)
        case "vqascore":
            return vqa.load(scorers.vqa, scorers.vqa_vision, scorers.vqa_tokenizer, device, dtype)
    raise LpoError(f"no judge {name!r}", "params.yaml: evaluate.judges", "use a name of lpo/config/results.py")


def sources_of(name: str, params: Params) -> list[tuple[str, str]]:
    """(folder or hub id, a file of it that says what it is) of everything that a judge loads."""
    models, scorers, config = params.evaluate.judge_models, params.score.models, "config.json"
    return {
        "pickscore": [(models.pickscore, config), (models.clip_h, "tokenizer_config.json")],
        "imagereward": [
            (models.imagereward, imagereward.WEIGHTS), (models.imagereward, imagereward.TEXT_CONFIG),
            (models.imagereward_tokenizer, "tokenizer_config.json"),
        ],
        "hps_v2": [(models.hps, hps.FILES["hps_v2"]), (models.clip_h, "tokenizer_config.json")],
        "hps_v2_1": [(models.hps, hps.FILES["hps_v2_1"]), (models.clip_h, "tokenizer_config.json")],
        "geneval": [(models.geneval_detector, config), (models.geneval_clip, config)],
        "aesthetic": [(scorers.aesthetic, config)],
        "clipscore": [(scorers.clip, config)],
        "vqascore": [(source, config) for source in (scorers.vqa, scorers.vqa_vision) if source is not None],
    }[name]  # fmt: skip


def check_judges(names: Sequence[str], params: Params, tasks: Mapping[str, str], prompts: int) -> None:
    """Look at every judge before the first picture is drawn; what is on the hub and not here is downloaded.

    Raises:
        LpoError: with everything that is missing.
    """
    wrong = []
    for name in names:
        for source, file in sources_of(name, params):
            try:
                file_of(source, file)
            except LpoError as error:
                wrong.append(f"{name}: {source}: {error.what}")
    if "geneval" in names and len(tasks) < prompts:
        wrong.append(f"geneval: {prompts - len(tasks)} of {prompts} prompts have no task (tag, include)")
    if wrong:
        where = "params.yaml: evaluate.judges, evaluate.judge_models, evaluate.prompts_file, score.models"
        raise LpoError("the judges are not all here:\n  " + "\n  ".join(wrong), where, "get them, or leave them out")
