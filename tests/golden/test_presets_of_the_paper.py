"""The presets hold the paper's numbers: its tables of hyperparameters (arXiv 2502.01051), copied here by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo.config import Params
from lpo.config.presets import with_preset

SD15, SD21 = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1-base"
# model, what the reward grows from, steps, warm-up, batch
REWARDS = {
    "sd15": (SD15, SD15, 4000, 500, 128),
    "sd21": (SD21, SD15, 4000, 500, 128),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0",) * 2 + (8000, 1000, 32),
}
# side of pictures, learning rate, rank, threshold at the least and the most noise, sample and train batch of a GPU
POLICIES = {
    "sd15": (512, 6e-5, 4, 0.35, 0.5, 5, 10),
    "sd21": (512, 6e-5, 4, 0.35, 0.5, 5, 10),
    "sdxl": (1024, 1e-5, 64, 0.45, 0.6, 4, 4),
}
GPUS = 4


@pytest.fixture(params=sorted(REWARDS))
def preset(request: pytest.FixtureRequest, repository: Path) -> tuple[str, Params]:
    return request.param, with_preset(request.param, repository / "params.yaml")


def test_the_reward(preset: tuple[str, Params]) -> None:
    name, params = preset
    found, base = params.reward, params.reward.base or params.model.path
    assert (params.model.path, base, found.steps, found.warmup_steps, found.batch_size) == REWARDS[name]
    assert (found.learning_rate, found.max_grad_norm, found.dtype) == (1e-5, 1.0, "bf16")
    assert (found.guidance_scale, found.features, found.trainable) == (7.5, "multi_scale", "full")
    assert (found.timesteps, found.shared_noise, found.example_weights) == ("uniform", False, True)
    assert (found.likelihood, found.learning_rate_schedule) == ("bradley_terry", "warmup_decay")
    assert params.filter.strict
    margins = params.filter.strategies[params.filter.strategy]
    assert (margins.aesthetic, margins.clip, margins.vqa) == (-0.5, 0.0, 0.0)
    assert (params.filter.ties.aesthetic, params.filter.ties.clip, params.filter.ties.vqa) == (0.2, 0.03, 0.07)


def test_the_policy(preset: tuple[str, Params]) -> None:
    name, params = preset
    found, threshold = params.tune, params.tune.threshold
    side, rate, rank, low, high, drawn, learned = POLICIES[name]
    assert (params.model.resolution, found.learning_rate, found.lora_rank) == (side, rate, rank)
    assert (threshold.schedule, threshold.low, threshold.high) == ("sigma", low, high)
    batches = (found.prompts_per_rollout, found.batch_size, found.micro_batch_size)
    assert batches == (GPUS * drawn, GPUS * learned, learned)
    assert (found.beta, found.clip_epsilon, found.num_candidates, found.prompts) == (500.0, 0.1, 4, 5 * 4000)
    assert (found.num_inference_steps, found.eta, found.guidance_scale) == (20, 1.0, 5.0)
    assert (found.continue_from, found.reward_timestep, found.logprob_reduction) == ("random", "current", "mean")
    assert (found.weight_decay, found.max_grad_norm, params.model.dtype) == (1e-4, 1.0, "fp16")
    assert params.model.gradient_checkpointing == (name == "sdxl")
    assert params.model.vae == ("madebyollin/sdxl-vae-fp16-fix" if name == "sdxl" else None)


def test_the_evaluation(preset: tuple[str, Params]) -> None:
    """DDIM, 20 steps; 7.5 is the scale of the SD1.5 base alone, and 5 of all else."""
    name, params = preset
    found = params.evaluate
    assert (found.prompts, found.num_inference_steps, found.eta, found.guidance_scale) == (500, 20, 0.0, 5.0)
    assert found.base_guidance_scale == (5.0 if name == "sdxl" else 7.5)


# SPO (arXiv 2406.04314) and its released configurations: candidates, threshold, rank, learning rate, prompts drawn and
# rows learned from at once by a GPU, with accumulation; the preference model's steps and learning rate
SPO = {"spo-sd15": (4, 0.3, 4, 6e-5, 10, 10, 1, 8000, 3e-6), "spo-sdxl": (2, 0.4, 64, 1e-5, 2, 2, 2, 7000, 1e-6)}


@pytest.mark.parametrize("name", SPO)
def test_spo(name: str, repository: Path) -> None:
    params = with_preset(name, repository / "params.yaml")
    found, reward = params.tune, params.spm
    candidates, limit, rank, rate, drawn, learned, accumulated, steps, reward_rate = SPO[name]
    assert (found.method, found.reward, found.num_candidates) == ("spo", "data/spm", candidates)
    assert (found.threshold.schedule, found.threshold.low, found.threshold.high) == ("constant", limit, limit)
    assert (found.lora_rank, found.learning_rate, found.prompts_per_rollout) == (rank, rate, GPUS * drawn)
    assert (found.batch_size, found.micro_batch_size) == (GPUS * learned * accumulated, learned)
    assert (found.beta, found.clip_epsilon, found.eta, found.guidance_scale) == (10.0, 0.1, 1.0, 5.0)
    assert (found.prompts, found.num_inference_steps, found.reward_timestep) == (10 * 4000, 20, "next")
    low, high = found.timestep_range
    kept = [t for t in range(951, 0, -50) if low <= t < high]
    assert kept == list(range(751, 0, -50))  # the first 4 of 20 are skipped
    assert (reward.steps, reward.learning_rate, reward.weight_decay) == (steps, reward_rate, 0.3)
    assert (reward.guidance_scale, reward.shared_noise, reward.timesteps) == (5.0, True, "uniform")
    assert reward.clip == "yuvalkirstain/PickScore_v1"


def test_sd3_reads_layer_18_with_frozen_text_encoders(repository: Path) -> None:
    """Appendix B."""
    params = with_preset("sd3", repository / "params.yaml")
    assert (params.reward.layer, params.reward.trainable, params.model.flow_step) == (18, "denoiser", "ddim")
