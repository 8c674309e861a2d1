"""Memory of `lpo tune`: policy and reward side by side, the adapter with Adam, its average and the best one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lpo.config import Params
from lpo.doctor import scorer_memory
from lpo.doctor.memory import META, Need, bytes_of, configured, peak
from lpo.doctor.reward_memory import latent_reward, preference_model, read_by
from lpo.doctor.rows import ADAM, DVC, FINITE, SMALL, drawing, elsewhere, encoding, ids, inputs, of_latent, of_text
from lpo.families import load_family
from lpo.families.family import Family
from lpo.paths import SPM
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import StepPreferenceModel

PAIRS = ("lpo", "spo")  # methods that keep two candidates of a step; the others keep all


def of_policy(params: Params, family: Family, everything: int) -> Need:
    """Five moments: prompts are encoded, a rollout, an update, a validation, a checkpoint is saved."""
    config, guard = params.tune, params.tune.guard
    reward, backbone, beside = reward_of(params, family)
    lora = family.add_lora(config.lora_rank, seed=0)
    adapter, largest = sum(p.numel() for p in lora), max(p.numel() for p in lora)
    per_text, per_latent, texts = of_text(family), of_latent(family), config.validation_prompts * of_text(backbone)
    average = 2 * 4 + (4 if config.method in ("nft", "dgpo") else 0)  # and the best; and the slow adapter
    models = [family] if backbone.denoiser is family.denoiser else [family, backbone]
    frozen = everything + beside - elsewhere(params, *(each.denoiser for each in models)) * family.dtype.itemsize
    held = frozen + adapter * (4 + ADAM + average) + texts

    k, prompts = config.num_candidates, config.prompts_per_rollout
    at_once = k * config.micro_batch_size  # rows of a forward without gradients
    steps = prompts * config.num_inference_steps
    kept = steps * (1 + (2 if config.method in PAIRS else k)) * per_latent
    words = prompts * (2 * per_text + (2 + k) * of_text(backbone))  # and the rows of this process
    noise = (prompts + steps * k + 4 * prompts * k) * per_latent  # all steps' is drawn before; candidates and means
    passes = max(_guided(family, min(prompts, at_once), config.guidance_scale),
                 _scored(reward, backbone, min(prompts * k, at_once)))  # fmt: skip
    rollout = noise + words + prompts * k * SMALL + max(kept + passes, 2 * kept)
    rows = min(config.batch_size, config.micro_batch_size)
    rows *= {"diffusion_dpo": 2, "smpo": 2, "dgpo": k}.get(config.method, 1)
    latents, t, text = inputs(family, rows)
    update = peak(lambda: family.guided(latents, t, text, text[:1], config.guidance_scale), backward=True)
    update += kept + (prompts + rows) * per_text + 16 * 4 * latents.numel()  # x_s, means and densities in float32

    sampler, names = params.evaluate.sampler, config.validation_scorers
    group = guard.prompts * guard.seeds
    validation = (config.validation_prompts + group) * per_latent + 4 * adapter + max(
        drawing(family, sampler.batch_size, sampler.guidance_scale), encoding(family, sampler.batch_size),
        _scored(reward, backbone, min(sampler.batch_size, config.validation_prompts)),
        scorer_memory.loaded(params.score, names) + scorer_memory.forward(params.score, names),
    )  # fmt: skip
    before = frozen + adapter * (4 + average), _encoding(reward, backbone, config.validation_prompts) + words
    during = held, max(encoding(family, prompts), _encoding(reward, backbone, prompts)) + words
    away = away_of(params, reward, models)
    moments = {
        "prompts": max(before, during, key=sum), "rollout": (held - away, rollout), "training": (held - away, update),
        "validation": (held, validation), "saving": (held, kept + FINITE * largest),
    }  # fmt: skip
    checkpoint = adapter * (4 + 8 + average + 4)  # weights, moments, average and best
    pictures = (config.validation_prompts + group) * 3 * family.pixels**2 * 4
    host = away + checkpoint + 2 * pictures  # in float32, and on their way there
    stored = adapter * (4 + 8 + 4 + 4)
    return Need("tune", moments, DVC * 4 * adapter + 2 * stored, host)


def reward_of(params: Params, family: Family) -> tuple[LatentRewardModel | StepPreferenceModel, Family, int]:
    """The reward, the model that it computes with, and the bytes that it holds beside the policy's."""
    config = params.reward
    if Path(params.tune.reward) == SPM:
        model = preference_model(params.spm, family)
        return model, family, bytes_of(model)
    shared = config.trainable == "adapter" and config.pretrained is None  # a LoRA of the policy's model
    base = configured(replace(params.model, path=config.base or params.model.path, denoiser=None))
    backbone = load_family(base, reward=True, layer=config.layer, device=META)
    latent = latent_reward(backbone, config, config.adapter_rank if shared else None).requires_grad_(False)
    heads = sum(value.nbytes for value in latent.heads().values())
    if shared:  # its blocks and text encoders are the policy's
        return latent, replace(family, **_layer(backbone)), heads
    return latent, backbone, heads + bytes_of(*backbone.modules().values())


def _layer(backbone: Family) -> dict[str, Any]:
    return {"layer": backbone.layer} if hasattr(backbone, "layer") else {}


def away_of(params: Params, reward: LatentRewardModel | StepPreferenceModel, models: list[Family]) -> int:
    """What waits in host memory during rollouts and updates (`idle` in lpo/train/policy/rollout.py)."""
    if params.model.device == "cpu":
        return 0
    encoders = [part for each in models for part in list(each.modules().values())[1:]]
    vae = models[0].codec.vae
    return bytes_of(*encoders, *([vae] if isinstance(reward, LatentRewardModel) else []))


def _encoding(reward: LatentRewardModel | StepPreferenceModel, backbone: Family, n: int) -> int:
    """Bytes that it takes the reward to encode n prompts at once."""
    if isinstance(reward, LatentRewardModel):
        return encoding(backbone, n)
    return peak(lambda: read_by(reward, ids(backbone, n)).pooled)


def _guided(family: Family, rows: int, scale: float) -> int:
    latents, t, text = inputs(family, rows)
    return peak(lambda: family.guided(latents, t, text, text[:1], scale)) + rows * of_text(family)


def _scored(reward: LatentRewardModel | StepPreferenceModel, backbone: Family, rows: int) -> int:
    """A forward of the reward on these rows. Of a latent one two passes of its backbone, one after the other."""
    latents, t, text = inputs(backbone, rows)
    if isinstance(reward, LatentRewardModel):
        features = peak(lambda: reward.backbone.features(latents, t, text)[1])
        return features + rows * of_text(backbone) + 2 * latents.nbytes

    def look() -> torch.Tensor:
        return reward.embed(reward.pictures(latents, t, text, text[:1]), t)

    return peak(look) + rows * of_text(backbone)
