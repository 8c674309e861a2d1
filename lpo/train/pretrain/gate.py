"""How good the embedded base is, by the judge of the emoji world, and the gates of params.yaml that it must pass."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from lpo import random
from lpo.config import Pretrain, SamplerSettings
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import CATEGORY_SHARES, prompts_of, sample_prompts
from lpo.errors import LpoError
from lpo.families.family import Family
from lpo.images import to_uint8
from lpo.sampling.generate import generate
from lpo.train.pretrain.base import encode_pictures, flawed_pictures

GUIDANCE_SCALE, STEPS = 3.0, 20  # of the gates by category
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0)


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, seed: int) -> float:
    """Share of flawed pictures whose reconstruction the judge finds right in everything."""
    rng = random.numpy_generator(seed, "vae gate")
    prompts = sample_prompts("validation", 500, rng)
    again = vae.decode(encode_pictures(vae, flawed_pictures(prompts, rng))).sample.clamp(-1, 1)
    return float(np.mean([verdict.all_correct for verdict in judge(to_uint8(again), prompts)]))


def all_correct(family: Family, seed: int, most: int = 100) -> dict[str, float]:
    """Share of prompts drawn right, by category: validation prompts, but every single object of all splits."""
    result = {}
    for category in CATEGORY_SHARES:
        splits = ("train", "validation", "test") if category == "single" else ("validation",)
        pool = [prompt for split in splits for prompt in prompts_of(split)[category]]
        rng = random.numpy_generator(seed, category)
        chosen = [pool[i] for i in rng.choice(len(pool), most, replace=len(pool) < most)]
        seeds = list(range(most))
        settings = SamplerSettings(STEPS, GUIDANCE_SCALE, 1.0, most)
        pictures = generate(family, [p.caption for p in chosen], seeds, settings, f"gate {category}")
        result[category] = float(np.mean([verdict.all_correct for verdict in judge(pictures, chosen)]))
    return result


def by_guidance(family: Family, seed: int, count: int = 400) -> dict[str, float]:
    """Share of validation prompts, in the proportions of their categories, drawn right at each of GUIDANCE_SCALES."""
    prompts = sample_prompts("validation", count, random.numpy_generator(seed, "guidance gate"))
    captions, seeds = [prompt.caption for prompt in prompts], list(range(len(prompts)))
    result = {}
    for scale in GUIDANCE_SCALES:
        settings = SamplerSettings(STEPS, scale, 1.0, 100)
        pictures = generate(family, captions, seeds, settings, f"gate at guidance {scale:g}")
        result[f"{scale:g}"] = float(np.mean([verdict.all_correct for verdict in judge(pictures, prompts)]))
    return result


def gate(metrics: dict[str, dict[str, float]], config: Pretrain) -> None:
    """Raise LpoError unless the model is as good as params.yaml asks."""
    single, reconstructed = metrics["all_correct"]["single"], metrics["vae"]["all_correct"]
    plain, best = metrics["by_guidance"]["1"], max(metrics["by_guidance"].values())
    low, high = config.gate_plain
    wrong = []
    if reconstructed < config.gate_vae:
        wrong.append(f"reconstructions {reconstructed:.2f} < {config.gate_vae}")
    if single < config.gate_single:
        wrong.append(f"single objects {single:.2f} < {config.gate_single}")
    if not low <= plain <= high:
        wrong.append(f"all-correct at guidance 1 {plain:.3f} outside [{low}, {high}]")
    if best < config.gate_guided:
        wrong.append(f"all-correct at the best guidance {best:.3f} < {config.gate_guided}")
    if wrong:
        raise LpoError(
            f"the base misses its gates: {'; '.join(wrong)}", "params.yaml: pretrain", "train longer, or move the gates"
        )
