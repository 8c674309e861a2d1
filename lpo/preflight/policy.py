"""What a method of tuning needs of the other parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lpo.config import Params
from lpo.errors import LpoError
from lpo.train.policy.methods import METHODS


def method(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Settings under which the method has no meaning."""
    config = params.tune
    chosen, where = METHODS[config.method], f"params.yaml: tune.method: {config.method}"
    if chosen.finished and config.guidance_scale != 1:
        what = f"{config.method} draws and learns without guidance; tune.guidance_scale is {config.guidance_scale:g}"
        yield LpoError(what, "params.yaml: tune.guidance_scale", "set it to 1, or take another method")
    if chosen.batch == "soft pairs" and params.filter.strategy == "none":
        what = "soft labels come from the score gaps of the pairs, and filter.strategy none computes no scores"
        yield LpoError(what, where, "set filter.strategy to another one, or tune.method to diffusion_dpo")
