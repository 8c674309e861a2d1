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
from lpo.sampling.generate import generate, to_uint8
from lpo.scorers.embedded import Scorers
from lpo.train.pretrain.base import encode_pictures, flawed_pictures, new_pipeline, train_unet, train_vae, training_set
from lpo.train.pretrain.scorers import train_scorers

PAIRS = ("pair", "colour_pair", "relation")
GUIDANCE_SCALE, STEPS = 3.0, 20


def run(params: Params) -> None:
    """Train VAE, scorers, and U-Net with text encoder in two phases; gate them by the judge; write half precision."""
    settle(torch.device("cpu"))
    config, seed = params.pretrain, params.seed
    folder = resume.folder("base", {"pretrain": asdict(config), "seed": seed, "atlas": file_hash(ATLAS)})
    parts = {name: folder / name for name in ("vae", "scorers", "unet", "layout")}
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
    for name, steps, learning_rate in (
        ("unet", config.unet_steps, config.unet_learning_rate),
        ("layout", config.layout_steps, config.layout_learning_rate),
    ):
        train_unet(
            pipe, data, parts[name], seed, steps, config.unet_batch_size, learning_rate, config.ema_decay,
            config.checkpoint_every, layout=name == "layout",
        )  # fmt: skip
    # A fast tokenizer saves the padding of its last call, which a run resumed at the end never makes.
    for tokenizer in (pipe.tokenizer, scorers.tokenizer):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    with atomic_folder("data/base") as out:
        pipe.to(torch.float16).save_pretrained(out)
        metrics["all_correct"] = all_correct(sd.load(str(out), torch.device("cpu"), torch.float32), seed)
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


def gate(metrics: dict[str, dict[str, float]], config: Pretrain) -> None:
    """Raise LpoError unless the model is as good as params.yaml asks."""
    right = metrics["all_correct"]
    shares = [CATEGORY_SHARES[category] for category in PAIRS]
    pairs = float(np.average([right[category] for category in PAIRS], weights=shares))
    low, high = config.gate_pair
    wrong = []
    if metrics["vae"]["all_correct"] < config.gate_vae:
        wrong.append(f"reconstructions {metrics['vae']['all_correct']:.2f} < {config.gate_vae}")
    if right["single"] < config.gate_single:
        wrong.append(f"single objects {right['single']:.2f} < {config.gate_single}")
    if not low <= pairs <= high:
        wrong.append(f"two objects {pairs:.2f} outside [{low}, {high}]")
    if wrong:
        raise LpoError(
            f"the base misses its gates: {'; '.join(wrong)}", "params.yaml: pretrain", "train longer, or move the gates"
        )
