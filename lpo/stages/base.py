"""base: nothing -> data/base (the embedded diffusion model), data/scorers, data/validators: committed, frozen."""

from __future__ import annotations

from dataclasses import asdict

import torch

from lpo import paths, resume
from lpo.config import Params
from lpo.emoji.sprites import ATLAS
from lpo.emoji.vocabulary import make_tokenizer
from lpo.families import sd, settle
from lpo.files import atomic_folder, file_hash, write_json
from lpo.paths import BASE, SCORERS, VALIDATORS
from lpo.scorers.embedded import Scorers
from lpo.train.pretrain.base import Data, Phase, new_pipeline, train_unet, train_vae, training_set, wrong_captions
from lpo.train.pretrain.gate import all_correct, by_guidance, gate, reconstruction
from lpo.train.pretrain.scorers import train_scorers


def run(params: Params) -> None:
    """Train VAE, scorers, validators, and U-Net with text encoder in three phases; gate them by the judge."""
    settle(torch.device("cpu"))
    config, seed = params.pretrain, params.seed
    folder = resume.folder("base", {"pretrain": asdict(config), "seed": seed, "atlas": file_hash(ATLAS)})
    parts = {name: folder / name for name in ("vae", "scorers", "validators", "unet", "layout", "captions")}
    for part in parts.values():
        part.mkdir(exist_ok=True)

    pipe = new_pipeline(seed)
    train_vae(
        pipe.vae, parts["vae"], seed, config.vae_steps, config.vae_batch_size, config.vae_learning_rate,
        config.checkpoint_every,
    )  # fmt: skip
    metrics = {"vae": {"all_correct": reconstruction(pipe.vae, seed)}}
    made = {}
    for name, own in (("scorers", seed + 1000), ("validators", seed + 2000)):
        torch.manual_seed(own)
        made[name] = Scorers(make_tokenizer())
        train_scorers(
            made[name], parts[name], own, config.scorer_steps, config.scorer_batch_size, config.scorer_learning_rate,
            config.checkpoint_every, distorted=name == "validators",
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
    for tokenizer in (pipe.tokenizer, *(scorers.tokenizer for scorers in made.values())):
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    with atomic_folder(BASE) as out:
        pipe.to(torch.float16).save_pretrained(out)
        base = sd.load(str(out), torch.device("cpu"), torch.float32)
        metrics["all_correct"], metrics["by_guidance"] = all_correct(base, seed), by_guidance(base, seed)
        gate(metrics, config)
    for path in (SCORERS, VALIDATORS):
        with atomic_folder(path) as out:
            made[path.name].save(out)
    write_json(paths.metrics("base"), metrics)
