"""One stochastic step x_t -> x_s of a diffusion or flow model, as a Gaussian with a known density.

    x_s = mean(prediction, x_t, t, s) + std(t, s) noise,    noise ~ N(0, I)
    log p(x_s | x_t) = -(x_s - mean)^2 / (2 std^2) - log std - log sqrt(2 pi), mean or sum over all but the batch

    transition = DDIM.from_scheduler(scheduler, eta=1.0)
    mean, std = transition.mean_std(prediction, x_t, t, s)
    x_s = transition.sample(prediction, x_t, t, s, noise)
    transition.log_prob(x_s, mean, std)

Shapes: prediction, x_t, x_s, noise (B, ...) alike; t, s (B,); std (B, 1, ...); sigma and log_prob (B,). The noise is an
argument, so that sampling can be tested. Coefficients are float32, which lifts half-precision latents to float32 as
well: a ratio of densities does not survive rounding. `sample` and `add_noise` return the dtype of their latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from diffusers import LCMScheduler, TCDScheduler

from lpo.diffusion.schedule import Scheduler, alpha_at, check_scheduler, ddim_sigma

Reduction = Literal["mean", "sum"]


def gaussian_log_prob(
    x_s: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Log density of N(mean, std^2) at x_s, reduced over all dimensions but the first: (B,), float32 or wider.

    With "mean" the scale does not depend on the resolution (published LPO); "sum" is the density itself.

    Raises:
        ValueError: on shapes that do not fit, and (on a CPU) where a std is 0: such a step has no density, leave it
            out.
    """
    if x_s.shape != mean.shape or std.shape != _column(mean, len(mean)):
        raise ValueError(f"x_s {tuple(x_s.shape)}, mean {tuple(mean.shape)} and std {tuple(std.shape)} do not fit")
    if std.device.type == "cpu" and not bool((std > 0).all()):  # on another device the answer would stop the stream
        raise ValueError("a step with std 0 has no density; leave it out")
    z = (x_s - mean) / std
    terms = -0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)
    return terms.flatten(1).mean(1) if reduction == "mean" else terms.flatten(1).sum(1)


def sample(
    transition: Transition, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """x_s = mean + std noise, of x_t's dtype. Both transitions have it as their method."""
    _check(x_t, noise)
    mean, std = transition.mean_std(prediction, x_t, t, s)
    return (mean + std * noise).to(x_t.dtype)


def step_gain(transition: Transition, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """g(t, s) = |d mean / d prediction| / std of a step, (B,): how hard its log density pulls at the model's output.

    The mean of a step is affine in the prediction, mean = c(t, s) prediction + b(t, s) x_t. With z = (x_s - mean) / std

        d log p(x_s | x_t) / d prediction = c z / std,   of size g |z|

    and z is standard normal at every t for the policy that drew x_s. So g alone says how much a loss on log densities
    weighs a step against the others. With direction = sqrt(1 - a_s - std^2):

        epsilon     g = |direction - sqrt(a_s (1 - a_t) / a_t)| / std
        v           g = |sqrt(a_t) direction - sqrt(a_s (1 - a_t))| / std
        flow        g = |(1 - t) sqrt(s^2 - std^2) - t (1 - s)| / std      ("ddim" and "renoise")
        flow, sde   g = (t - s) (1 + g_sde^2 (1 - t) / (2 t)) / std

    It is nearly flat for epsilon, and for v and flow 10 to 60 times larger at the last steps than at the first, where
    content is decided; GRPO-Guard (arXiv 2510.22319) reports the same of flow models. Weights mean(g) / g(t) on the
    losses of steps undo it.
    A step without noise has no density, and g is infinite.
    """
    zero = torch.zeros(len(t), 1, device=t.device)
    mean, std = transition.mean_std(torch.ones_like(zero), zero, t, s)  # at x_t = 0 the mean is c
    return (mean.abs() / std)[:, 0]


@dataclass(frozen=True, eq=False)
class DDIM:
    """Variance-preserving diffusion, DDIM steps with eta (arXiv 2010.02502, eq. 12 and 16); a = alphas_cumprod.

        x_t  = sqrt(a_t) x0 + sqrt(1 - a_t) eps
        mean = sqrt(a_s) x0_hat + sqrt(1 - a_s - sigma^2) eps_hat,  std = sigma(t, s)

        form "ddim"     sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
        form "renoise"  sigma = eta sqrt(1 - a_s):  at eta 1 x_s = sqrt(a_s) x0_hat + sqrt(1 - a_s) noise (LCM, arXiv
                        2310.04378, multistep sampling)
        form "tcd"      sigma = sqrt(1 - a_s / a_u),  u = floor((1 - eta) s):  a step to u without noise, then noise
                        from u to s (TCD, arXiv 2402.19159, whose gamma is eta)

    t, s are long tensors of timesteps; s = -1 is the end of the last step, where a_s is final_alpha_cumprod. Equal to
    diffusers' DDIMScheduler.step, LCMScheduler.step and TCDScheduler.step without clipping. LCM's boundary scalings are
    left out: they change x0_hat by 7e-6 at t = 19 and by less than float32 resolves from t = 150 on.
    The last step of "renoise" and "tcd" has std 0, so it has no density: four steps give three to learn from.
    """

    alphas_cumprod: torch.Tensor  # (T,)
    final_alpha_cumprod: torch.Tensor  # ()
    prediction_type: Literal["epsilon", "v_prediction"]
    eta: float
    form: Literal["ddim", "renoise", "tcd"] = "ddim"

    log_prob = staticmethod(gaussian_log_prob)
    sample = sample

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    @classmethod
    def from_scheduler(cls, scheduler: Scheduler, eta: float) -> DDIM:
        """Read a scheduler. Raises LpoError on unsupported settings (`check_scheduler`)."""
        check_scheduler(scheduler.config)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], is {eta}")
        alphas, prediction_type = scheduler.alphas_cumprod, scheduler.config.prediction_type
        if isinstance(scheduler, LCMScheduler):  # its last step returns x0_hat
            return cls(alphas, torch.ones(()), prediction_type, eta, "renoise")
        if isinstance(scheduler, TCDScheduler):  # its last step ends at t = 0
            return cls(alphas, alphas[0], prediction_type, eta, "tcd")
        return cls(alphas, scheduler.final_alpha_cumprod, prediction_type, eta)

    def to(self, device: torch.device) -> DDIM:
        """The same with its tensors on `device`, so that a step copies nothing there."""
        return replace(
            self, alphas_cumprod=self.alphas_cumprod.to(device), final_alpha_cumprod=self.final_alpha_cumprod.to(device)
        )

    def pred_x0_eps(
        self, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction as (x0_hat, eps_hat), each of x_t's shape.

        epsilon: x0 = (x_t - sqrt(1 - a) eps) / sqrt(a)
        v:       x0 = sqrt(a) x_t - sqrt(1 - a) v,  eps = sqrt(a) v + sqrt(1 - a) x_t
        """
        _check(x_t, prediction, t)
        alpha = self._alpha(x_t, t)
        root, noise_root = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "epsilon":
            return (x_t - noise_root * prediction) / root, prediction
        return root * x_t - noise_root * prediction, root * prediction + noise_root * x_t

    def sigma(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the step, (B,); 0 where a_s = 1, at eta 0, and in the last step but of "ddim"."""
        alphas, final = self.alphas_cumprod, self.final_alpha_cumprod
        alpha_s = alpha_at(alphas, final, s)
        if self.form == "ddim":
            return ddim_sigma(alpha_at(alphas, final, t), alpha_s, self.eta)
        if self.form == "renoise":
            return torch.where(s < 0, 0.0, self.eta * (1 - alpha_s) ** 0.5)
        return (1 - alpha_s / alpha_at(alphas, final, self._between(s))).clamp(min=0) ** 0.5

    def mean_std(
        self, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (x_t's shape) and std (B, 1, ...) of x_s."""
        _check(x_t, prediction, t, s)
        x0, eps = self.pred_x0_eps(prediction, x_t, t)
        alpha_s, std = self._alpha(x_t, s), self.sigma(t, s).view(_column(x_t, len(t)))
        return alpha_s**0.5 * x0 + self._direction(alpha_s, std, s.view(std.shape)) ** 0.5 * eps, std

    def _direction(self, alpha_s: torch.Tensor, std: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """1 - a_s - sigma^2, without the rounding of a difference where it is a product: its root would show it."""
        if self.form == "renoise":
            return (1 - self.eta**2) * (1 - alpha_s)
        if self.form == "tcd":
            between = alpha_at(self.alphas_cumprod, self.final_alpha_cumprod, self._between(s))
            return alpha_s / between * (1 - between)
        # At zero terminal SNR the difference is 0 up to rounding, which may fall below it.
        return (1 - alpha_s - std**2).clamp(min=0)

    def _between(self, s: torch.Tensor) -> torch.Tensor:
        """u = floor((1 - eta) s) of "tcd"; after the last step s itself."""
        return torch.where(s < 0, s, ((1 - self.eta) * s).floor().long())

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise, of x0's dtype."""
        _check(x0, noise, t)
        alpha = self._alpha(x0, t)
        return (alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise).to(x0.dtype)

    def noise_level(self, t: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the noise in x_t, sqrt(1 - a_t), (B,)."""
        return (1 - alpha_at(self.alphas_cumprod, self.final_alpha_cumprod, t)) ** 0.5

    def _alpha(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return alpha_at(self.alphas_cumprod, self.final_alpha_cumprod, t).view(_column(x, len(t)))


@dataclass(frozen=True)
class Flow:
    """Rectified flow, x_t = (1 - t) x0 + t eps, prediction v = eps - x0; t, s are levels in [0, 1], s < t.

    The times given are levels times `scale`: 1, or the model's num_train_timesteps if they are its timesteps.

    form "ddim", eta in [0, 1]: the DDIM step with alpha = 1 - t (LPO, appendix B; derived for these coefficients)
        std  = eta (s / t) sqrt(t^2 - ((1 - t) / (1 - s))^2 s^2)
        mean = (1 - s) x0_hat + sqrt(s^2 - std^2) eps_hat
    form "renoise", eta in [0, 1]: at eta 1 x_s = (1 - s) x0_hat + s noise, the stochastic sampling of distilled models
        std  = eta s                                          mean as above
    form "sde", eta = a: the step of Flow-GRPO (arXiv 2505.05470), g = a sqrt(t / (1 - t)), dt = s - t
        std  = g sqrt(-dt)
        mean = x_t (1 + g^2 / (2 t) dt) + v (1 + g^2 (1 - t) / (2 t)) dt

    eta 0 is the Euler step x_t + v dt in all three, and so is the last step, to s = 0: it has std 0 and no density.
    """

    eta: float
    form: Literal["ddim", "renoise", "sde"] = "ddim"
    scale: float = 1.0

    log_prob = staticmethod(gaussian_log_prob)
    sample = sample

    def to(self, device: torch.device) -> Flow:
        """It holds no tensors."""
        return self

    @property
    def num_train_timesteps(self) -> int:
        return int(self.scale)

    def pred_x0_eps(
        self, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x0_hat = x_t - t v, eps_hat = x_t + (1 - t) v, each of x_t's shape."""
        _check(x_t, prediction, t)
        level = self._level(t).view(_column(x_t, len(t)))
        return x_t - level * prediction, x_t + (1 - level) * prediction

    def sigma(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the step, (B,)."""
        t, s = self._level(t), self._level(s)
        if self.form == "renoise":
            return self.eta * s
        if self.form == "ddim":
            return self.eta * (s / t) * (t**2 - ((1 - t) / (1 - s) * s) ** 2) ** 0.5
        return self._diffusion(t, s) * (t - s) ** 0.5

    def mean_std(
        self, prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (x_t's shape) and std (B, 1, ...) of x_s."""
        _check(x_t, prediction, t, s)
        column = _column(x_t, len(t))
        std = self.sigma(t, s).view(column)
        if self.form != "sde":
            x0, eps = self.pred_x0_eps(prediction, x_t, t)
            level = self._level(s).view(column)
            # At t = 1 and eta 1 the difference is 0 up to rounding, which may fall below it.
            return (1 - level) * x0 + (level**2 - std**2).clamp(min=0) ** 0.5 * eps, std
        t, s = self._level(t), self._level(s)
        drift = (self._diffusion(t, s) ** 2 / (2 * t)).view(column)
        level, dt = t.view(column), (s - t).view(column)
        return x_t * (1 + drift * dt) + prediction * (1 + drift * (1 - level)) * dt, std

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = (1 - t) x0 + t noise, of x0's dtype."""
        _check(x0, noise, t)
        level = self._level(t).view(_column(x0, len(t)))
        return ((1 - level) * x0 + level * noise).to(x0.dtype)

    def noise_level(self, t: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the noise in x_t, the level of t itself, (B,)."""
        return self._level(t)

    def _level(self, time: torch.Tensor) -> torch.Tensor:
        return time.float() / self.scale if self.scale != 1 else time

    def _diffusion(self, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        # g is infinite at t = 1; Flow-GRPO's code puts the next level there. Noise after the last step would stay.
        return torch.where(s > 0, self.eta * (t / (1 - torch.where(t == 1, s, t))) ** 0.5, 0)


Transition = DDIM | Flow


def _column(x: torch.Tensor, batch: int) -> tuple[int, ...]:
    return (batch, *(1 for _ in x.shape[1:]))


def _check(x: torch.Tensor, like: torch.Tensor, *times: torch.Tensor) -> None:
    if like.shape != x.shape or any(time.shape != x.shape[:1] for time in times):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (x, like, *times))
        raise ValueError(f"expected latents (B, ...) alike and times (B,), got {shapes}")
