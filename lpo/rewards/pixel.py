"""A scorer of pictures as a reward: it looks at the x_0 that the policy predicts, decoded.

    S(p, x_t, t) = scorer(decode(x0_hat(x_t, t)), p),  x0_hat the guided prediction; x_t itself where t = 0

The scorers that filtered the pairs (aesthetic, clip, vqa), and the published judges pickscore, imagereward, hps_v2,
hps_v2_1 and hpsv3. None of them was trained on predictions, which are blurred at large t: this is what SPO's step-aware
preference model (spm.py) is for. A score costs a guided pass of the denoiser, a decode and a pass of the scorer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lpo.config import JudgeModels, Score
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.images import to_tensor, to_uint8
from lpo.scorers.judges import load_judge
from lpo.scorers.published import NAMES, load_scorers, to_pictures

JUDGES = ("pickscore", "imagereward", "hps_v2", "hps_v2_1", "hpsv3")
PICTURE_SCORERS = (*NAMES, *JUDGES)
PROMPT = "prompt of the scorer"

Look = Callable[[torch.Tensor, list[str]], torch.Tensor]


class ScorerModels(NamedTuple):
    """Where the scorers lie: the sections `score` and `evaluate.judge_models`."""

    score: Score
    judges: JudgeModels


class PixelReward:
    """look: pictures (B, 3, H, W) in [-1, 1], rounded as in files, and B prompts -> (B,). family: the policy."""

    space = "pixel"

    def __init__(self, look: Look, family: Family, guidance_scale: float) -> None:
        self.look, self.family, self.guidance_scale = look, family, guidance_scale
        self.transition = family.transition(1.0).to(family.device)
        self.prompts: dict[str, int] = {}  # scorers read words, and a Conditioning holds tensors: the place of each

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """What the policy reads, and under a name of its own the place of each prompt among those met so far."""
        own = self.family.encode_prompts(prompts)
        places = [self.prompts.setdefault(prompt, len(self.prompts)) for prompt in prompts]
        return Conditioning({**own.tensors, PROMPT: torch.tensor(places, device=own.pooled.device)}, own.pooled)

    @torch.no_grad()
    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        """(B,) float32 of noisy latents (B, C, h, w) at t (B,) under B prompts."""
        x_0 = latents
        if bool((t > 0).any()):
            own, against = _of_policy(conditioning), _of_policy(null)
            prediction = self.family.guided(latents, t, own, against, self.guidance_scale)
            predicted, _ = self.transition.pred_x0_eps(prediction, latents, t)
            x_0 = torch.where((t == 0).view(-1, 1, 1, 1), latents, predicted.to(latents.dtype))
        words = list(self.prompts)
        pictures = to_tensor(to_uint8(self.family.decode(x_0)))
        found = self.look(pictures, [words[i] for i in conditioning.tensors[PROMPT].tolist()])
        return found.float().to(latents.device)


def load(name: str, models: ScorerModels, family: Family, guidance_scale: float) -> PixelReward:
    """The scorer `name` of PICTURE_SCORERS as a reward of `family`.

    Raises:
        LpoError: where a file of it is missing.
    """
    if name in NAMES:
        scorers = load_scorers(models.score, family.device, [name])
        return PixelReward(lambda x, prompts: scorers.score(x, prompts)[name], family, guidance_scale)
    judge = load_judge(name, models.judges, models.score.models, {}, family.device)
    return PixelReward(lambda x, prompts: judge.score(to_pictures(x), prompts), family, guidance_scale)


def _of_policy(conditioning: Conditioning) -> Conditioning:
    return Conditioning({k: v for k, v in conditioning.tensors.items() if k != PROMPT}, conditioning.pooled)
