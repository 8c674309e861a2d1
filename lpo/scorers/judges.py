"""The published judges: which files each one needs, and how it is loaded.

    scorer = load_judge("pickscore", models, scorers, tasks, device)
    scorer.score(pictures, prompts)     (N,), more is better

    pickscore          exp(logit_scale) cos, about 20 to 23       lpo/scorers/pickscore.py
    imagereward        standardised, about -2 to 2                lpo/scorers/imagereward.py
    hps_v2, hps_v2_1   100 cos, about 24 to 32                    lpo/scorers/hps.py
    hpsv3              mean of human preference, about -1 to 10   lpo/scorers/hpsv3.py
    geneval            1 or 0: all of the task is right           lpo/scorers/geneval.py
    aesthetic          LAION's predictor, about 4 to 7            lpo/scorers/aesthetic.py
    clipscore          cos of CLIP ViT-H/14                       lpo/scorers/clip_score.py
    vqascore           P(yes: it shows the prompt), 0 to 1        lpo/scorers/vqa.py

The last three are the scorers of MPCF and read `score.models`. They chose the training pairs, so they are not
independent judges. Judges are large, so lpo/evaluate loads one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL import Image

from lpo.config import JudgeModels, ScoreModels
from lpo.errors import LpoError
from lpo.families import DTYPES
from lpo.scorers import aesthetic, clip_score, detector, hps, hpsv3, imagereward, pickscore, vqa


class Scorer(Protocol):
    """Scores pictures against their prompts: (N,), more is better."""

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor: ...


class Aesthetic:
    """LAION's predictor, which does not read the prompt."""

    def __init__(self, scorer: aesthetic.Aesthetic) -> None:
        self.scorer = scorer

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        return self.scorer.score(pictures)


def load_judge(
    name: str, models: JudgeModels, scorers: ScoreModels, tasks: Mapping[str, str], device: torch.device
) -> Scorer:
    """The judge `name`.

    Args:
        tasks: prompt -> its GenEval task, as JSON text.

    Raises:
        LpoError: if a file of the judge is missing or broken.
    """
    dtype = DTYPES[scorers.dtype]
    match name:
        case "pickscore":
            return pickscore.load(models.pickscore, models.clip_h, device)
        case "imagereward":
            return imagereward.load(models.imagereward, models.imagereward_tokenizer, device)
        case "hps_v2" | "hps_v2_1":
            return hps.load(name, models.hps, models.clip_h, device)
        case "hpsv3":
            return hpsv3.load(models.hpsv3, models.hpsv3_base, device)
        case "geneval":
            return detector.load(models.geneval_detector, models.geneval_clip, tasks, device)
        case "aesthetic":
            return Aesthetic(aesthetic.load(scorers.aesthetic, scorers.aesthetic_head, device, dtype))
        case "clipscore":
            return clip_score.load(scorers.clip, device, dtype)
        case "vqascore":
            return vqa.load(scorers.vqa, scorers.vqa_vision, scorers.vqa_tokenizer, device, dtype)
    raise LpoError(f"no judge {name!r}", "params.yaml: evaluate.judges", "use a name of lpo/config/results.py")


def sources_of(name: str, models: JudgeModels, scorers: ScoreModels) -> list[tuple[str, str]]:
    """(folder or hub id, a file that must be in it) for everything that the judge loads."""
    config, words = "config.json", "tokenizer_config.json"
    return {
        "pickscore": [(models.pickscore, config), (models.clip_h, words)],
        "imagereward": [
            (models.imagereward, imagereward.WEIGHTS), (models.imagereward, imagereward.TEXT_CONFIG),
            (models.imagereward_tokenizer, words),
        ],
        "hps_v2": [(models.hps, hps.FILES["hps_v2"]), (models.clip_h, words)],
        "hps_v2_1": [(models.hps, hps.FILES["hps_v2_1"]), (models.clip_h, words)],
        "hpsv3": [(models.hpsv3, hpsv3.WEIGHTS), (models.hpsv3_base, config), (models.hpsv3_base, words)],
        "vlm": [],  # a server, see lpo/scorers/vlm.py
        "geneval": [(models.geneval_detector, config), (models.geneval_clip, config)],
        "aesthetic": [(scorers.aesthetic, config)],
        "clipscore": [(scorers.clip, config)],
        "vqascore": [(source, config) for source in (scorers.vqa, scorers.vqa_vision) if source is not None],
    }[name]  # fmt: skip
