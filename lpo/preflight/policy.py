"""What a method of tuning, and the use of its adapter, need of the other parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lpo.config import Params
from lpo.doctor.memory import META, configured
from lpo.errors import LpoError
from lpo.evaluate.sides import is_denoiser
from lpo.families import load_family
from lpo.paths import SPM
from lpo.preference.mpcf import SCORES
from lpo.preflight.files import missing
from lpo.preflight.models import is_here
from lpo.rewards.pixel import PICTURE_SCORERS
from lpo.scorers.judges import sources_of
from lpo.train.policy.methods import METHODS


def method(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Settings under which the method has no meaning."""
    config = params.tune
    chosen, where = METHODS[config.method], f"params.yaml: tune.method: {config.method}"
    if chosen.finished and config.guidance_scale != 1:
        what = f"{config.method} draws and learns without guidance; tune.guidance_scale is {config.guidance_scale:g}"
        yield LpoError(what, "params.yaml: tune.guidance_scale", "set it to 1, or take another method")
    if config.kl_weight > 0 and chosen.batch != "steps":
        what = f"{config.method} learns from no steps, so there is no KL divergence of a step to weigh"
        yield LpoError(what, f"params.yaml: tune.kl_weight: {config.kl_weight:g}", "set it to 0")
    climbed = config.rewards or {config.reward: 1.0}
    if config.reward_timestep == "look_ahead" and any(Path(n) == SPM or n in PICTURE_SCORERS for n in climbed):
        what = "this reward predicts x_0 itself, and look_ahead would do it twice"
        yield LpoError(what, "params.yaml: tune.reward_timestep: look_ahead", "set it to next")
    if config.blind is not None and config.blind not in SCORES:
        for source, file in sources_of(config.blind, params.evaluate.judge_models, params.score.models):
            yield from missing(source, [file], f"params.yaml: tune.blind: {config.blind}: {source}")
    if chosen.batch == "soft pairs" and params.filter.strategy == "none":
        what = "soft labels come from the score gaps of the pairs, and filter.strategy none computes no scores"
        yield LpoError(what, where, "set filter.strategy to another one, or tune.method to diffusion_dpo")


def adapter_timesteps(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Timesteps at which the adapter is on: there must be an adapter, and a step of the sampler among them."""
    config = params.evaluate
    if config.adapter_timesteps is None:
        return
    low, high = config.adapter_timesteps
    where = f"params.yaml: evaluate.adapter_timesteps: [{low}, {high}]"
    if is_denoiser(Path(config.tuned)):
        what = f"evaluate.tuned: {config.tuned} is a whole denoiser, so there is no adapter to switch off"
        yield LpoError(what, where, "set it to null")
    if is_here(params.model):
        t = load_family(configured(params.model), device=META).steps(config.num_inference_steps)[0].tolist()
        if not any(low <= value < high for value in t):
            what = f"none of the {len(t)} steps begins in this range, so the adapter would always be off"
            yield LpoError(what, where, "widen it, or set it to null")
