"""Timesteps and noise levels of a DDIM sampler, or one of few steps, read from a scheduler's configuration.

    DDIM        t_i = i floor(T / n) + offset,  i = n - 1 .. 0          "leading" spacing
                t_i = round(T - i T / n) - 1,  i = 0 .. n - 1           "trailing" spacing, from T - 1 on
                s_i = t_i - floor(T / n)                where the step from t_i ends; below 0: after the last
                sigma(t, s) = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
    LCM, TCD    t_i = (m - floor(i m / n)) floor(T / m) - 1,  i = 0 .. n - 1,  m = original_inference_steps
                s_i = t_(i + 1), and after the last step -1

a is the scheduler's alphas_cumprod (T,). Timesteps are long tensors (n,), the first step of the sampler first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from lpo.errors import LpoError

Scheduler: TypeAlias = DDIMScheduler | LCMScheduler | TCDScheduler
AFTER_LAST = -1  # s of the sampler's last step: alpha is then the scheduler's final_alpha_cumprod


def check_scheduler(config: Mapping[str, Any]) -> None:
    """Refuse settings under which the step is no longer the Gaussian of `transitions.DDIM`.

    Args:
        config: `DDIMScheduler.config`.

    Raises:
        LpoError: naming every unsupported setting.
    """
    wrong = [f"{name} is on" for name in ("clip_sample", "thresholding") if config[name]]
    if config["prediction_type"] not in ("epsilon", "v_prediction"):
        wrong.append(f"prediction_type is {config['prediction_type']!r}, not epsilon or v_prediction")
    if config["timestep_spacing"] not in ("leading", "trailing"):
        wrong.append(f"timestep_spacing is {config['timestep_spacing']!r}, not leading or trailing")
    if wrong:
        raise LpoError(
            f"unsupported scheduler settings: {'; '.join(wrong)}",
            "scheduler/scheduler_config.json of the model",
            "set model.scheduler: ddim, which samples without them, and model.prediction_type; or take another model",
        )


def ddim_timesteps(scheduler: Scheduler, num_inference_steps: int) -> torch.Tensor:
    """Timesteps t of n steps, (n,) long, descending: those of the scheduler's `set_timesteps`.

    Raises:
        LpoError: if the model has no such timesteps (n < 1, or the largest one is T or more).
    """
    total, n = scheduler.config.num_train_timesteps, num_inference_steps
    few = not isinstance(scheduler, DDIMScheduler)
    trailing = scheduler.config.timestep_spacing == "trailing"
    offset = 0 if few or trailing else scheduler.config.steps_offset
    most = scheduler.config.original_inference_steps if few else total
    stride = most // max(n, 1)
    if n < 1 or stride < 1 or (not few and (n - 1) * stride + offset >= total):
        known = f"{most} steps of distillation" if few else f"{total} training timesteps with offset {offset}"
        what = f"{n} sampling steps do not fit {known}"
        raise LpoError(what, "num_inference_steps", "choose fewer steps, but at least 1")
    if few:
        return (most - torch.arange(n) * most // n) * (total // most) - 1
    if trailing:
        return (total - torch.arange(n, dtype=torch.float64) * (total / n)).round().long() - 1
    return torch.arange(n - 1, -1, -1) * stride + offset


def previous_timesteps(scheduler: Scheduler, num_inference_steps: int) -> torch.Tensor:
    """Timesteps s where each of the n steps ends, (n,) long; -1 stands for "after the last step".

    Those of `DDIMScheduler.step` subtract floor(T / n) and do not look at the next timestep; LCM and TCD do.
    """
    if not isinstance(scheduler, DDIMScheduler):
        t = ddim_timesteps(scheduler, num_inference_steps)
        return torch.cat([t[1:], torch.tensor([AFTER_LAST])])
    stride = scheduler.config.num_train_timesteps // num_inference_steps
    return (ddim_timesteps(scheduler, num_inference_steps) - stride).clamp(min=AFTER_LAST)


def ddim_sigma(alpha_t: torch.Tensor, alpha_s: torch.Tensor, eta: float) -> torch.Tensor:
    """Standard deviation of the step t -> s for cumulative alphas of one shape (DDIM, arXiv 2010.02502, eq. 16)."""
    return eta * ((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s)) ** 0.5


def ddim_sigmas(scheduler: DDIMScheduler, num_inference_steps: int, eta: float = 1.0) -> torch.Tensor:
    """Standard deviations of the n steps, (n,), in the order of `ddim_timesteps`; eta 1 as in LPO's thresholds."""
    t, s = ddim_timesteps(scheduler, num_inference_steps), previous_timesteps(scheduler, num_inference_steps)
    alphas, final = scheduler.alphas_cumprod, scheduler.final_alpha_cumprod
    return ddim_sigma(alpha_at(alphas, final, t), alpha_at(alphas, final, s), eta)


def alpha_at(alphas_cumprod: torch.Tensor, final_alpha_cumprod: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Cumulative alphas at timesteps t, of t's shape and on its device; the final alpha where t < 0."""
    alphas = alphas_cumprod.to(t.device)[t.clamp(min=0)]
    return torch.where(t < 0, final_alpha_cumprod.to(t.device), alphas)
