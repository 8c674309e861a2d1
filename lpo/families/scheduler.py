"""The scheduler of a U-Net: how the model was trained is read from its configuration, how it is sampled is ours.

    betas, num_train_timesteps, prediction_type      the model's: read, whichever sampler wrote the file
    leading timesteps, offset 1, no clipping         DDIM as Stable Diffusion and the published LPO run it

A DDIM configuration is taken as it stands, and refused where the step would not be a plain Gaussian
(`check_scheduler`). Of another sampler's (Euler, DPM-Solver, PNDM, ...) its own way of sampling is left out. Two
parameters answer what a file on the hub says wrongly or not at all: `model.scheduler: ddim` and
`model.prediction_type`.
"""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler

from lpo.diffusion.schedule import check_scheduler
from lpo.errors import LpoError
from lpo.families import parts

SAMPLER: dict[str, Any] = {
    "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "thresholding": False,
    "set_alpha_to_one": False,
}  # fmt: skip
NEEDED = {"timestep_spacing": "leading", "clip_sample": False, "thresholding": False}  # see `check_scheduler`
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of Stable Diffusion
FILE = "scheduler/scheduler_config.json"


def load(source: str, sampler: str | None = None, prediction_type: str | None = None) -> DDIMScheduler:
    """The DDIM scheduler of a model.

    Args:
        sampler: "ddim" puts SAMPLER in the place of what the file says, and Stable Diffusion's betas where it has none.
        prediction_type: in the place of the file's.

    Raises:
        LpoError: if there is no configuration and `sampler` does not take its place, if it says nothing of betas, or
            if its settings are unsupported.
    """
    try:
        config = parts.scheduler_config(DDIMScheduler, source)
    except LpoError:
        if sampler is None:
            raise
        config = {}
    writer = config.get("_class_name", "DDIMScheduler")
    if sampler == "ddim":
        config = BETAS | config | SAMPLER
    elif writer != "DDIMScheduler":
        config = SAMPLER | config | NEEDED
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    missing = [] if config.get("trained_betas") else sorted(BETAS.keys() - config.keys())
    if missing:
        what = f"the configuration of its {writer} lacks {', '.join(missing)}"
        remedy = "set model.scheduler: ddim if it was trained with the betas of Stable Diffusion, or take another model"
        raise LpoError(what, f"{source}/{FILE}", remedy)
    scheduler = DDIMScheduler.from_config(config)
    check_scheduler(scheduler.config)
    return scheduler
