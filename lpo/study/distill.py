"""distill: data/base -> data/few, a U-Net that draws in few steps, and how often it is right in 1, 2, 4 and 8 of them.

It takes the place of the base's own: `model.denoiser: data/few` with `model.scheduler: lcm`, at guidance scale 1.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from lpo import random, resume
from lpo.config import Params, SamplerSettings
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import sample_prompts
from lpo.families import load_family, settle
from lpo.families.family import Family
from lpo.files import atomic_folder, folder_hash, write_json
from lpo.paths import BASE, FEW
from lpo.sampling.generate import generate
from lpo.train.pretrain.base import training_set
from lpo.train.pretrain.distill import distill

STEPS, PROMPTS = (1, 2, 4, 8), 200


def run(params: Params) -> None:
    """Distil the embedded base; write the U-Net in half precision, and its all-correct rates beside the base's."""
    settle(torch.device("cpu"))
    config, seed = params.distill, params.seed
    folder = resume.folder("distill", {"distill": asdict(config), "seed": seed, "base": folder_hash(BASE)})
    pipe = StableDiffusionPipeline.from_pretrained(BASE, local_files_only=True, torch_dtype=torch.float32)
    latents, ids, _ = training_set(pipe, seed, config.scenes)
    student = distill(pipe, latents, ids, config, folder, seed)
    with atomic_folder(FEW) as out:
        student.to(torch.float16).save_pretrained(out)
        few = load_family(replace(params.model, path=str(BASE), denoiser=str(out), scheduler="lcm"))
        base = load_family(replace(params.model, path=str(BASE), denoiser=None))
        rates = {
            "few": {str(n): all_correct(few, seed, n, 1.0) for n in STEPS},
            "base": {str(n): all_correct(base, seed, n, config.guidance_scale) for n in (*STEPS, 20)},
        }
    write_json(Path("studies/distill.json"), rates)


def all_correct(family: Family, seed: int, steps: int, guidance_scale: float) -> float:
    """Share of validation prompts that are drawn right in so many steps."""
    prompts = sample_prompts("validation", PROMPTS, random.numpy_generator(seed, "few"))
    settings = SamplerSettings(steps, guidance_scale, 1.0, 100)
    captions, seeds = [prompt.caption for prompt in prompts], list(range(len(prompts)))
    pictures = generate(family, captions, seeds, settings, f"{steps} steps")
    return float(np.mean([verdict.all_correct for verdict in judge(pictures, prompts)]))
