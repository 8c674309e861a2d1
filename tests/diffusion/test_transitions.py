from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
)

from lpo.diffusion.schedule import ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM, Flow, gaussian_log_prob, step_gain
from lpo.errors import LpoError

PREDICTIONS = ["epsilon", "v_prediction"]


def scheduler(**settings) -> DDIMScheduler:
    known = {"beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(**{**known, **settings})


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("alpha_to_one", [False, True])
def test_a_ddim_step_is_the_schedulers(prediction_type: str, eta: float, alpha_to_one: bool) -> None:
    """All steps of a sampler in one batch, each row at its own t, against the scheduler's scalar steps."""
    theirs = scheduler(prediction_type=prediction_type, set_alpha_to_one=alpha_to_one)
    theirs.set_timesteps(20)
    t, s = ddim_timesteps(theirs, 20), previous_timesteps(theirs, 20)
    x, prediction, noise = (normal(20, 4, 5, 3, seed=seed) for seed in range(3))
    ours = DDIM.from_scheduler(theirs, eta)
    x_s, (x0, _) = ours.sample(prediction, x, t, s, noise), ours.pred_x0_eps(prediction, x, t)
    for i in range(20):
        step = theirs.step(prediction[i], int(t[i]), x[i], eta=eta, variance_noise=noise[i])
        torch.testing.assert_close(x_s[i], step.prev_sample, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(x0[i], step.pred_original_sample, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("kind", "eta"), [(LCMScheduler, 1.0), (TCDScheduler, 1.0), (TCDScheduler, 0.3), (TCDScheduler, 0.0)]
)
def test_a_step_of_few_is_the_schedulers(kind: Any, eta: float, n: int, prediction_type: str) -> None:
    """LCM and TCD to the last digits, their noise drawn from the same generator; the last step has none."""
    theirs = kind(prediction_type=prediction_type, clip_sample=False)
    theirs.set_timesteps(n)
    t, s = ddim_timesteps(theirs, n), previous_timesteps(theirs, n)
    ours, own = DDIM.from_scheduler(theirs, eta), {} if kind is LCMScheduler else {"eta": eta}
    x, prediction = normal(n, 4, 5, 3, seed=0), normal(n, 4, 5, 3, seed=1)
    for i in range(n):
        step = theirs.step(prediction[i], int(t[i]), x[i], generator=torch.Generator().manual_seed(i), **own)
        found = ours.sample(prediction[i : i + 1], x[i : i + 1], t[i : i + 1], s[i : i + 1], normal(1, 4, 5, 3, seed=i))
        torch.testing.assert_close(found[0], step.prev_sample, rtol=4e-6, atol=2e-6)
    std = ours.sigma(t, s)
    assert std[-1] == 0 and bool((std[:-1] > 0).all()) == (eta > 0 or n == 1)


def test_turbo_is_eulers_ancestral_sampler() -> None:
    """SDXL-Turbo's: x / sqrt(1 + sigma^2) of its latents are ours, sigma^2 = (1 - a) / a."""
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    }
    theirs = EulerAncestralDiscreteScheduler(**config)
    theirs.set_timesteps(4)
    ddim = scheduler(**config, set_alpha_to_one=True)
    ours, t, s = DDIM.from_scheduler(ddim, 1.0), ddim_timesteps(ddim, 4), previous_timesteps(ddim, 4)
    assert torch.equal(t.float(), theirs.timesteps)
    for i in range(4):
        scale, following = ((1 + theirs.sigmas[j] ** 2) ** 0.5 for j in (i, i + 1))
        x, prediction, noise = (normal(1, 4, 5, 3, seed=seed) for seed in (0, 1, i))
        step = theirs.step(prediction, theirs.timesteps[i], x * scale, generator=torch.Generator().manual_seed(i))
        found = ours.sample(prediction, x, t[i : i + 1], s[i : i + 1], noise)
        torch.testing.assert_close(found, step.prev_sample / following, rtol=1e-4, atol=1e-4)


def test_renoising_of_a_flow_is_the_schedulers_stochastic_sampling() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    theirs.set_timesteps(4)
    levels, flow = theirs.sigmas, Flow(1.0, "renoise")
    for i in range(4):
        x, v = normal(1, 4, 5, 3, seed=0), normal(1, 4, 5, 3, seed=1)
        step = theirs.step(v, theirs.timesteps[i], x, generator=torch.Generator().manual_seed(i))
        found = flow.sample(v, x, levels[i : i + 1], levels[i + 1 : i + 2], normal(1, 4, 5, 3, seed=i))
        torch.testing.assert_close(found, step.prev_sample, rtol=2e-6, atol=1e-6)
    assert flow.sigma(levels[3:4], levels[4:5]) == 0


@pytest.mark.parametrize("kind", ["renoise", "tcd", "flow"])
def test_densities_of_few_steps_are_those_of_torch(kind: str) -> None:
    """At eta 1 re-noising is N(sqrt(a_s) x0_hat, 1 - a_s), whatever x_t is beside its x0_hat."""
    x, prediction, noise = (normal(3, 4, 5, 3, seed=seed) for seed in range(3))
    if kind == "flow":
        transition: DDIM | Flow = Flow(1.0, "renoise")
        t, s = torch.tensor([1.0, 0.75, 0.5]), torch.tensor([0.75, 0.5, 0.25])
        signal, level = 1 - s, s
    else:
        theirs = (LCMScheduler if kind == "renoise" else TCDScheduler)(clip_sample=False)
        transition = DDIM.from_scheduler(theirs, 1.0 if kind == "renoise" else 0.4)
        t, s = ddim_timesteps(theirs, 4)[:3], previous_timesteps(theirs, 4)[:3]
        signal, level = theirs.alphas_cumprod[s] ** 0.5, (1 - theirs.alphas_cumprod[s]) ** 0.5
    mean, std = transition.mean_std(prediction, x, t, s)
    x_s = mean + std * noise
    expected = torch.distributions.Normal(mean, std).log_prob(x_s).flatten(1).sum(1)
    torch.testing.assert_close(transition.log_prob(x_s, mean, std, "sum"), expected)
    x0, eps = transition.pred_x0_eps(prediction, x, t)
    if kind != "tcd":
        torch.testing.assert_close(mean, signal.view(3, 1, 1, 1) * x0, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(std.flatten(), level)
    rest = mean - signal.view(3, 1, 1, 1) * x0  # the direction of eps_hat, so that the marginal is kept
    torch.testing.assert_close((rest / eps).flatten(1)[:, 0] ** 2 + std.flatten() ** 2, level**2, rtol=1e-3, atol=1e-4)


def taken(step: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std of a sampler's step: two draws of its noise differ by the std times the difference of the noise."""
    drawn = [step(torch.Generator().manual_seed(seed)) for seed in range(2)]
    noise = [normal(1, 4, 5, 3, seed=seed) for seed in range(2)]
    std = (drawn[0] - drawn[1]).norm() / (noise[0] - noise[1]).norm()
    return drawn[0] - std * noise[0], std


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("kind", ["ddim", "lcm", "tcd", "turbo", "schnell"])
def test_a_density_is_that_of_the_samplers_own_step(kind: str, prediction_type: str) -> None:
    """torch's Normal with mean and std of diffusers' step, at each of its steps but the last."""
    known: dict[str, Any] = {"prediction_type": prediction_type, "beta_schedule": "scaled_linear"}
    x, prediction = normal(1, 4, 5, 3, seed=8), normal(1, 4, 5, 3, seed=9)
    if kind == "schnell":
        theirs: Any = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    elif kind == "turbo":
        theirs = EulerAncestralDiscreteScheduler(**known, timestep_spacing="trailing")
    else:
        theirs = {"ddim": DDIMScheduler, "lcm": LCMScheduler, "tcd": TCDScheduler}[kind](**known, clip_sample=False)
    theirs.set_timesteps(4)
    own = {"ddim": {"eta": 0.6}, "tcd": {"eta": 0.4}}.get(kind, {})
    if kind == "schnell":
        transition: DDIM | Flow = Flow(1.0, "renoise")
        t, s = theirs.sigmas[:-1], theirs.sigmas[1:]
    else:
        trailing = scheduler(prediction_type=prediction_type, timestep_spacing="trailing", set_alpha_to_one=True)
        ours = trailing if kind == "turbo" else theirs
        transition = DDIM.from_scheduler(ours, own.get("eta", 1.0))
        t, s = ddim_timesteps(ours, 4), previous_timesteps(ours, 4)
    for i, timestep in enumerate(theirs.timesteps[:-1]):
        scale = after = torch.ones(())
        if kind == "turbo":  # its latents are x / sqrt(a)
            scale, after = ((1 + theirs.sigmas[j] ** 2) ** 0.5 for j in (i, i + 1))

        def step(noise: torch.Generator, at: Any = timestep, before: Any = scale, then: Any = after) -> torch.Tensor:
            theirs._step_index = None
            return theirs.step(prediction, at, x * before, generator=noise, **own).prev_sample / then

        mean, std = taken(step)
        x_s = mean + std * normal(1, 4, 5, 3, seed=20 + i)
        expected = torch.distributions.Normal(mean, std).log_prob(x_s).mean()
        found = transition.log_prob(x_s, *transition.mean_std(prediction, x, t[i : i + 1], s[i : i + 1]))
        torch.testing.assert_close(found, expected[None], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["ddim", "renoise", "sde"])
def test_a_density_of_a_flow_is_that_of_torch(form: str) -> None:
    """Mean and std written out: the posterior of the forward chain by its precisions, and Flow-GRPO's equation."""
    t, s = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64), torch.tensor([0.7, 0.4, 0.1], dtype=torch.float64)
    x, v, noise = (normal(3, 4, 5, 3, seed=seed, dtype=torch.float64) for seed in range(3))
    flow = Flow(1.0 if form != "sde" else 0.7, form)  # type: ignore[arg-type]
    column = (3, 1, 1, 1)
    x_0 = x - t.view(column) * v
    if form == "ddim":  # x_s ~ N((1 - s) x_0, s^2), and x_t = r x_s + sqrt(q) noise
        r = (1 - t) / (1 - s)
        q = t**2 - (r * s) ** 2
        precision = 1 / s**2 + r**2 / q
        mean = (((1 - s) / s**2).view(column) * x_0 + (r / q).view(column) * x) / precision.view(column)
        std = precision**-0.5
    elif form == "renoise":
        mean, std = (1 - s).view(column) * x_0, s
    else:
        sigma, dt = 0.7 * (t / (1 - t)) ** 0.5, s - t
        drift = v + (sigma**2 / (2 * t)).view(column) * (x + (1 - t).view(column) * v)
        mean, std = x + dt.view(column) * drift, sigma * (-dt) ** 0.5
    x_s = mean + std.view(column) * noise
    expected = torch.distributions.Normal(mean, std.view(column)).log_prob(x_s).flatten(1).sum(1)
    torch.testing.assert_close(flow.log_prob(x_s, *flow.mean_std(v, x, t, s), "sum"), expected)


@pytest.mark.parametrize("shape", [(3,), (2, 7), (2, 4, 8, 8), (2, 4, 2, 3, 3)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    theirs = scheduler()
    theirs.set_timesteps(20)
    x, prediction, noise = (normal(*shape, seed=seed) for seed in range(3))
    t, s = torch.full(shape[:1], 501), torch.full(shape[:1], 451)
    expected = theirs.step(prediction, 501, x, eta=1.0, variance_noise=noise).prev_sample
    torch.testing.assert_close(DDIM.from_scheduler(theirs, 1.0).sample(prediction, x, t, s, noise), expected)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_true_prediction_gives_x0_and_noise_back(prediction_type: str) -> None:
    ours = DDIM.from_scheduler(scheduler(prediction_type=prediction_type), 1.0)
    x0, noise, t = normal(3, 4, 4, seed=0), normal(3, 4, 4, seed=1), torch.tensor([1, 400, 999])
    x_t = ours.add_noise(x0, noise, t)
    torch.testing.assert_close(x_t, scheduler().add_noise(x0, noise, t))
    alpha = ours.alphas_cumprod[t].view(3, 1, 1)
    truth = noise if prediction_type == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * x0
    got_x0, got_eps = ours.pred_x0_eps(truth, x_t, t)
    torch.testing.assert_close(got_x0, x0, rtol=0, atol=5e-5)
    torch.testing.assert_close(got_eps, noise, rtol=0, atol=5e-5)


def test_a_step_of_the_truth_keeps_the_marginal() -> None:
    """With eps_hat the true noise, x_s is sqrt(a_s) x0 + noise of variance 1 - a_s, at every eta."""
    for eta in (0.0, 0.6, 1.0):
        ours = DDIM.from_scheduler(scheduler(), eta)
        t, s = torch.tensor([601, 101]), torch.tensor([551, 51])
        zero, ones = torch.zeros(2, 1), torch.ones(2, 1)
        direction, std = ours.mean_std(ones, ours.add_noise(zero, ones, t), t, s)  # x0 = 0: the factor of eps_hat
        torch.testing.assert_close(direction**2 + std**2, 1 - ours.alphas_cumprod[s].view(2, 1))


def test_zero_terminal_snr_is_finite() -> None:
    ours = DDIM.from_scheduler(scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True), 1.0)
    assert ours.alphas_cumprod[999] == 0
    x, v = normal(20, 4, 8, 8, seed=0), normal(20, 4, 8, 8, seed=1)
    t, s = torch.full((20,), 999), torch.arange(0, 1000, 50)
    mean, std = ours.mean_std(v, x, t, s)
    assert mean.isfinite().all() and (std > 0).all()


def test_half_precision_is_computed_in_float32_and_returned_in_half() -> None:
    ours = DDIM.from_scheduler(scheduler(), 1.0)
    t, s = torch.tensor([501]), torch.tensor([451])
    x, prediction, noise = (normal(1, 4, 8, 8, seed=seed).half() for seed in range(3))
    mean, std = ours.mean_std(prediction, x, t, s)
    wide, _ = ours.mean_std(prediction.float(), x.float(), t, s)
    assert torch.equal(mean, wide)
    assert ours.sample(prediction, x, t, s, noise).dtype == torch.half
    assert ours.log_prob(x, mean, std).dtype == torch.float32


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_log_prob_is_that_of_torch(reduction: str) -> None:
    x, mean = normal(3, 4, 5, 6, seed=0), normal(3, 4, 5, 6, seed=1)
    std = torch.tensor([0.02, 0.5, 3.0]).view(3, 1, 1, 1)
    terms = torch.distributions.Normal(mean, std).log_prob(x).flatten(1)
    expected = terms.mean(1) if reduction == "mean" else terms.sum(1)
    torch.testing.assert_close(gaussian_log_prob(x, mean, std, reduction), expected)


def test_log_prob_by_hand() -> None:
    """At the mean, std 1: -log sqrt(2 pi) = -0.9189; two stds away: 2 less."""
    mean, std = torch.zeros(2, 3), torch.ones(2, 1)
    x = torch.tensor([[0.0] * 3, [2.0] * 3])
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), torch.tensor([-0.918939, -2.918939]))
    torch.testing.assert_close(gaussian_log_prob(x, mean, std, "sum"), 3 * torch.tensor([-0.918939, -2.918939]))


def test_gradient_of_the_density_reaches_the_prediction() -> None:
    ours = DDIM.from_scheduler(scheduler(prediction_type="v_prediction"), 1.0)
    x, x_s = normal(2, 3, seed=0, dtype=torch.float64), normal(2, 3, seed=1, dtype=torch.float64)
    t, s = torch.tensor([951, 51]), torch.tensor([901, 1])

    def density(prediction: torch.Tensor) -> torch.Tensor:
        return ours.log_prob(x_s, *ours.mean_std(prediction, x, t, s))

    prediction = normal(2, 3, seed=2, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(density, prediction)


def test_a_step_without_noise_has_no_density() -> None:
    ours = DDIM.from_scheduler(scheduler(set_alpha_to_one=True), 1.0)
    x, t, s = normal(2, 3, seed=0), torch.tensor([51, 1]), torch.tensor([1, -1])
    assert ours.sigma(t, s)[0] > 0 and ours.sigma(t, s)[1] == 0
    with pytest.raises(ValueError, match="no density"):
        ours.log_prob(x, *ours.mean_std(x, x, t, s))


def test_wrong_shapes_and_settings_are_refused() -> None:
    ours = DDIM.from_scheduler(scheduler(), 1.0)
    x, t = normal(2, 4, 3, 3, seed=0), torch.tensor([501, 501])
    for transition, time in ((ours, t), (Flow(1.0), t / 1000)):
        with pytest.raises(ValueError, match=r"times \(B,\)"):
            transition.mean_std(x, x, time, time[:1])
        with pytest.raises(ValueError, match="alike"):
            transition.mean_std(x[:, :2], x, time, time / 2)
        with pytest.raises(ValueError, match="alike"):
            transition.sample(x, x, time, time / 2, x[:1])
        with pytest.raises(ValueError, match="alike"):
            transition.add_noise(x, x[:1], time)
    with pytest.raises(ValueError, match="do not fit"):
        ours.log_prob(x, x, torch.ones(2))
    with pytest.raises(ValueError, match="eta"):
        DDIM.from_scheduler(scheduler(), 1.5)
    with pytest.raises(LpoError, match="clip_sample"):
        DDIM.from_scheduler(scheduler(clip_sample=True), 1.0)


FORMS = ["ddim", "renoise", "sde"]


@pytest.mark.parametrize("form", FORMS)
def test_flow_without_noise_is_the_euler_step(form: str) -> None:
    """x_t + (s - t) v, which FlowMatchEulerDiscreteScheduler takes, down to s = 0."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    levels = theirs.sigmas
    x, v, noise = (normal(10, 4, 3, 3, seed=seed) for seed in range(3))
    ours = Flow(0.0, form).sample(v, x, levels[:-1], levels[1:], noise)  # type: ignore[arg-type]
    for i, timestep in enumerate(theirs.timesteps):
        expected = theirs.step(v[i], timestep, x[i]).prev_sample
        torch.testing.assert_close(ours[i], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_flow_density_is_finite_on_every_step_but_the_last(form: str) -> None:
    levels = torch.linspace(1, 0, 21)
    t, s = levels[:-2], levels[1:-1]
    x, v = normal(19, 4, 3, 3, seed=0), normal(19, 4, 3, 3, seed=1)
    flow = Flow(1.0, form)  # type: ignore[arg-type]
    mean, std = flow.mean_std(v, x, t, s)
    assert (std > 0).all()
    assert flow.log_prob(mean + std * v, mean, std).isfinite().all()


def test_flow_ddim_form_survives_rounding_near_pure_noise() -> None:
    """At eta 1 and t near 1 the share of eps_hat is 0 up to rounding."""
    s = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    one = torch.ones(len(s), 1)
    for t in (0.999, 1.0):
        mean, _ = Flow(1.0).mean_std(one, one, torch.full_like(s, t), s)
        assert mean.isfinite().all()


def test_flow_last_step_of_the_ddim_form_is_the_predicted_picture() -> None:
    x, v, t, s = normal(2, 3, seed=0), normal(2, 3, seed=1), torch.tensor([0.1, 0.4]), torch.zeros(2)
    mean, std = Flow(1.0).mean_std(v, x, t, s)
    torch.testing.assert_close(mean, x - t[:, None] * v)
    assert (std == 0).all()


def test_flow_ddim_form_keeps_the_marginal() -> None:
    """With x0 = 0 and true noise 1, x_t = t: factor of the noise and std must add up to variance s^2."""
    t, s = torch.tensor([1.0, 0.7, 0.2]), torch.tensor([0.8, 0.5, 0.1])
    for eta in (0.0, 0.5, 1.0):
        mean, std = Flow(eta).mean_std(torch.ones(3, 1), t[:, None], t, s)  # v = eps - x0 = 1
        torch.testing.assert_close(mean**2 + std**2, s[:, None] ** 2)


def test_flow_ddim_form_at_eta_one_is_the_posterior_of_the_forward_chain() -> None:
    """x_t = r x_s + sqrt(q) w, r = (1 - t)/(1 - s), q = t^2 - r^2 s^2: var(x_s | x_t, x0) = q s^2 / t^2."""
    t, s = torch.tensor([0.6]), torch.tensor([0.5])
    q = 0.36 - (0.4 / 0.5) ** 2 * 0.25  # 0.2
    torch.testing.assert_close(Flow(1.0).sigma(t, s) ** 2, torch.tensor([q * 0.25 / 0.36]))


def test_flow_sde_by_hand() -> None:
    """t 0.6, s 0.5, a 0.7: g^2 = 0.49 * 1.5, dt = -0.1, g^2 / 2 t = 0.6125; mean = x (1 - 0.06125) - 0.1 v (1.245)."""
    x, v = torch.tensor([[2.0]]), torch.tensor([[3.0]])
    mean, std = Flow(0.7, "sde").mean_std(v, x, torch.tensor([0.6]), torch.tensor([0.5]))
    torch.testing.assert_close(mean, torch.tensor([[2 * 0.93875 - 0.3 * 1.245]]))
    torch.testing.assert_close(std, torch.tensor([[(0.735 * 0.1) ** 0.5]]))


def test_flow_true_velocity_gives_x0_and_noise_back() -> None:
    x0, noise, t = normal(3, 5, seed=0), normal(3, 5, seed=1), torch.tensor([0.0, 0.3, 1.0])
    flow = Flow(1.0)
    got_x0, got_noise = flow.pred_x0_eps(noise - x0, flow.add_noise(x0, noise, t), t)
    torch.testing.assert_close(got_x0, x0)
    torch.testing.assert_close(got_noise, noise)


@pytest.mark.parametrize("eta", [0.4, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow ddim", "flow renoise", "flow sde"])
def test_the_gain_of_a_step_is_what_a_log_density_pulls_at_the_prediction_with(kind: str, eta: float) -> None:
    """|d log p / d prediction| = g |z|, by autograd, whatever the latents and the prediction are."""
    if kind.startswith("flow"):
        transition: DDIM | Flow = Flow(eta, kind.split()[1], scale=1000)  # type: ignore[arg-type]
        t, s = torch.tensor([900.0, 500.0, 120.0]), torch.tensor([850.0, 450.0, 70.0])
    else:
        transition = DDIM.from_scheduler(scheduler(prediction_type=kind), eta)
        t, s = torch.tensor([951, 501, 1]), torch.tensor([901, 451, -1])
    x, noise = normal(3, 4, 2, 2, seed=0), normal(3, 4, 2, 2, seed=2)
    prediction = normal(3, 4, 2, 2, seed=1).requires_grad_()
    mean, std = transition.mean_std(prediction, x, t, s)
    x_s = (mean + std * noise).detach()
    (pull,) = torch.autograd.grad(gaussian_log_prob(x_s, mean, std, "sum").sum(), prediction)
    gain = step_gain(transition, t, s).view(3, 1, 1, 1)
    torch.testing.assert_close(pull.abs(), gain * noise.abs(), rtol=2e-3, atol=1e-4)
