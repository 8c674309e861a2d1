import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, TCDScheduler

from lpo.diffusion.schedule import check_scheduler, ddim_sigmas, ddim_timesteps, previous_timesteps
from lpo.errors import LpoError


def scheduler(**settings) -> DDIMScheduler:
    return DDIMScheduler(**{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **settings})


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 30, 50, 333, 500, 501, 999])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_those_of_the_scheduler(steps: int, offset: int) -> None:
    theirs = scheduler(steps_offset=offset)
    theirs.set_timesteps(steps)
    ours = ddim_timesteps(theirs, steps)
    assert ours.dtype == torch.long
    assert torch.equal(ours, theirs.timesteps)


@pytest.mark.parametrize("kind", ["trailing", "lcm", "tcd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 20, 50])
def test_timesteps_of_few_steps_are_those_of_the_scheduler(steps: int, kind: str) -> None:
    """And where each ends: LCM and TCD at the next timestep, DDIM floor(T / n) below."""
    theirs = (
        scheduler(timestep_spacing="trailing") if kind == "trailing"
        else {"lcm": LCMScheduler, "tcd": TCDScheduler}[kind](clip_sample=False)
    )  # fmt: skip
    theirs.set_timesteps(steps)
    t, s = ddim_timesteps(theirs, steps), previous_timesteps(theirs, steps)
    after = t - 1000 // steps if kind == "trailing" else torch.cat([t[1:], torch.tensor([-1])])
    assert torch.equal(t, theirs.timesteps) and torch.equal(s, after.clamp(min=-1)) and t.dtype == s.dtype == torch.long


def test_more_steps_than_a_model_was_distilled_for_are_refused() -> None:
    with pytest.raises(LpoError, match="51 sampling steps do not fit 50 steps of distillation"):
        ddim_timesteps(LCMScheduler(), 51)


@pytest.mark.parametrize("steps", [7, 20, 30, 501])
def test_a_step_ends_where_the_next_one_starts(steps: int) -> None:
    ours = scheduler()
    t, s = ddim_timesteps(ours, steps), previous_timesteps(ours, steps)
    assert torch.equal(s[:-1], t[1:])
    assert s[-1] == (0 if steps == 501 else -1)  # 501 steps have stride 1, and 1 - 1 is a timestep


@pytest.mark.parametrize("steps", [0, -3, 1000, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(LpoError, match=f"{steps} sampling steps"):
        ddim_timesteps(scheduler(), steps)


def test_sigmas_are_the_roots_of_the_schedulers_variance() -> None:
    theirs = scheduler(beta_schedule="scaled_linear")
    theirs.set_timesteps(20)
    expected = [theirs._get_variance(int(t), int(t) - 50) ** 0.5 for t in theirs.timesteps]
    assert torch.equal(ddim_sigmas(theirs, 20), torch.stack(expected))
    torch.testing.assert_close(ddim_sigmas(theirs, 20, eta=0.5), 0.5 * torch.stack(expected))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"clip_sample": True}, "clip_sample is on"),
        ({"thresholding": True}, "thresholding is on"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"timestep_spacing": "linspace"}, "timestep_spacing is 'linspace'"),
    ],
)
def test_unsupported_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(LpoError, match=named):
        check_scheduler(scheduler(**settings).config)


def test_all_unsupported_settings_are_named_at_once() -> None:
    with pytest.raises(LpoError) as error:
        check_scheduler(scheduler(clip_sample=True, timestep_spacing="linspace").config)
    assert "clip_sample" in str(error.value) and "linspace" in str(error.value)


def test_supported_settings_pass() -> None:
    for prediction_type in ("epsilon", "v_prediction"):
        check_scheduler(scheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True).config)
