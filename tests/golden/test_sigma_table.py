"""The noise levels of the published code's typed-in table, computed here, and what follows from them."""

import pytest
import torch
from diffusers import DDIMScheduler

from lpo.diffusion.schedule import ddim_sigmas, ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM, step_gain

PUBLISHED = [
    0.0206, 0.0406, 0.1673, 0.2144, 0.2509, 0.2836, 0.3144, 0.3442, 0.3732, 0.4016,
    0.4293, 0.4565, 0.4829, 0.5087, 0.5336, 0.5576, 0.5807, 0.6029, 0.6241, 0.6444,
]  # fmt: skip


def test_sigmas_of_twenty_steps() -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    assert ddim_timesteps(scheduler, 20).flip(0).tolist() == list(range(1, 1000, 50))
    torch.testing.assert_close(ddim_sigmas(scheduler, 20).flip(0), torch.tensor(PUBLISHED), rtol=0, atol=5e-5)


def test_last_step_without_noise_where_alpha_ends_at_one() -> None:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    sigmas = ddim_sigmas(scheduler, 20)
    assert sigmas[-1] == 0
    assert sigmas[0] == pytest.approx(float(sigmas.max()))


@pytest.mark.parametrize(
    ("prediction_type", "gains"),
    [
        ("v_prediction", [5.295, 1.078, 0.789, 0.568, 0.452, 0.366, 0.293, 0.228, 0.169, 0.118, 0.077]),
        ("epsilon", [5.431, 1.141, 0.868, 0.693, 0.636, 0.623, 0.635, 0.667, 0.716, 0.778, 0.853]),
    ],
)
def test_gains_of_twenty_steps(prediction_type: str, gains: list[float]) -> None:
    """By hand, from a_t of the schedule: at t = 951 for v, (sqrt(a_s (1 - a_t)) - sqrt(a_t) direction) / std."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction_type,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    t, s = ddim_timesteps(scheduler, 20), previous_timesteps(scheduler, 20)
    found = step_gain(DDIM.from_scheduler(scheduler, 1.0), t, s)
    at = [t.tolist().index(value) for value in (51, 101, 151, 251, 351, 451, 551, 651, 751, 851, 951)]
    torch.testing.assert_close(found[at], torch.tensor(gains), rtol=0, atol=6e-4)
