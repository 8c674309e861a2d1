"""base: nothing -> data/base (the embedded diffusion model) and data/scorers, both committed; frozen in dvc.yaml."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from diffusers import AutoencoderKL

from lpo import random, resume
from lpo.config import Params, Pretrain, SamplerSettings
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import CATEGORY_SHARES, prompts_of, sample_prompts
from lpo.emoji.sprites import ATLAS
from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.families import sd, settle
from lpo.families.family import Family
from lpo.files import atomic_folder, file_hash, write_json
from lpo.images import to_uint8
from lpo.sampling.generate import generate
from lpo.scorers.embedded import Scorers
from lpo.train.pretrain.base import (
    Data,
    Phase,
    encode_pictures,
    flawed_pictures,
    new_pipeline,
    train_unet,
    train_vae,
    training_set,
    wrong_captions,
)
from lpo.train.pretrain.scorers import train_scorers

GUIDANCE_SCALE, STEPS = 3.0, 20  # of the gates by category
GUIDANCE_SCALES = (1.0, 1.5, 2.0, 3.0)


def run(params: Params) -> None:
    """Train VAE, scorers, and U-Net with text encoder in three phases; gate them by the judge; write half precision."""
    settle(torch.device("cpu"))
    config, seed = params.pretrain, params.seed
    folder = resume.folder("base", {"pretrain": asdict(config), "seed": seed, "atlas": file_hash(ATLAS)})
    parts = {name: folder / name for name in ("vae", "scorers", "unet", "layout", "captions")}
    for part in parts.values():
        part.mkdir(exist_ok=True)

    pipe = new_pipeline(seed)
    train_vae(
        pipe.vae, parts["vae"], seed, config.vae_steps, config.vae_batch_size, config.vae_learning_rate,
        config.checkpoint_every,
    )  # fmt: skip
    metrics = {"vae": {"all_correct": reconstruction(pipe.vae, seed)}}
    torch.manual_seed(seed + 1000)
    scorers = Scorers(make_tokenizer())
    train_scorers(
        scorers, parts["scorers"], seed + 1000, config.scorer_steps, config.scorer_batch_size,
        config.scorer_learning_rate, config.checkpoint_every,
    )  # fmt: skip
    data = training_set(pipe, seed, config.scenes)
    wrong = data[0], *wrong_captions(pipe.tokenizer, seed, config.scenes, config.near_miss_share)
    phases: tuple[tuple[Phase, Data, int, float], ...] = (
        ("unet", data, config.unet_steps, config.unet_learning_rate),
        ("layout", data, config.layout_steps, config.layout_learning_rate),
        ("captions", wrong, config.captions_steps, config.captions_learning_rate),
    )
    for phase, seen, steps, learning_rate in phases:
        train_unet(
            pipe, seen, parts[phase], seed, steps, config.unet_batch_size, learning_rate, config.ema_decay,
            config.checkpoint_every, phase,
        )  # fmt: skip
    # A fast tokenizer saves the padding of its last call, which a run resumed at the end never makes.
    for tokenizer in (pipe.tokenizer, scorers.tokenizer):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    with atomic_folder("data/base") as out:
        pipe.to(torch.float16).save_pretrained(out)
        made = sd.load(str(out), torch.device("cpu"), torch.float32)
        metrics["all_correct"], metrics["by_guidance"] = all_correct(made, seed), by_guidance(made, seed)
        gate(metrics, config)
    with atomic_folder("data/scorers") as out:
        scorers.save(out)
    write_json("metrics/base.json", metrics)


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
    captions, seeds = [prompt.caption for prompt in prompts], list(range(count))
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
