"""The scheduler of a U-Net: how the model was trained is read from its configuration, how it is sampled is ours.

    betas, num_train_timesteps, prediction_type      the model's: read, whichever sampler wrote the file
    leading timesteps, offset 1, no clipping         DDIM as Stable Diffusion and the published LPO run it
    trailing timesteps, to x_0 in the last step      `model.scheduler: turbo`: at eta 1 it is Euler's ancestral sampler
    LCM's or TCD's                                   `model.scheduler: lcm` or `tcd`: x_0 is predicted and noised again

A DDIM configuration is taken as it stands, and refused where the step would not be a plain Gaussian
(`check_scheduler`). Of another sampler's configuration (Euler, DPM-Solver, LCM, ...) its own way of sampling is left
out. Two parameters answer what a file on the hub says wrongly or not at all: `model.scheduler` and
`model.prediction_type`.
"""

from __future__ import annotations

from typing import Any

from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from lpo.diffusion.schedule import Scheduler, check_scheduler
from lpo.errors import LpoError
from lpo.families import parts

SAMPLER: dict[str, Any] = {
    "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "thresholding": False,
    "set_alpha_to_one": False,
}  # fmt: skip
TURBO = SAMPLER | {"timestep_spacing": "trailing", "set_alpha_to_one": True}
FEW_STEPS = {"turbo": DDIMScheduler, "lcm": LCMScheduler, "tcd": TCDScheduler}
NEEDED = {"timestep_spacing": "leading", "clip_sample": False, "thresholding": False}  # see `check_scheduler`
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # of Stable Diffusion
FILE = "scheduler/scheduler_config.json"


def load(source: str, sampler: str | None = None, prediction_type: str | None = None) -> Scheduler:
    """The scheduler of a model: DDIM, or LCM's or TCD's where `sampler` names them.

    Args:
        sampler: "ddim" puts SAMPLER in the place of what the file says, and Stable Diffusion's betas where it has none.
            "turbo", "lcm" and "tcd" do the same with the samplers of models of few steps.
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
    if sampler is not None:
        config = BETAS | config | (TURBO if sampler == "turbo" else SAMPLER)
    elif writer != "DDIMScheduler":
        config = SAMPLER | config | NEEDED
    if prediction_type is not None:
        config["prediction_type"] = prediction_type
    missing = [] if config.get("trained_betas") else sorted(BETAS.keys() - config.keys())
    if missing:
        what = f"the configuration of its {writer} lacks {', '.join(missing)}"
        remedy = "set model.scheduler: ddim if it was trained with the betas of Stable Diffusion, or take another model"
        raise LpoError(what, f"{source}/{FILE}", remedy)
    scheduler = FEW_STEPS.get(sampler or "ddim", DDIMScheduler).from_config(config)
    check_scheduler(scheduler.config)
    return scheduler
