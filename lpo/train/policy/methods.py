"""The methods: how scored candidates become something to learn from, and the loss.

    method          select            loss
    lpo             best and worst    -log sigmoid(beta (log r_w - log r_l)), r clamped to 1 -+ eps
    spo             as lpo            as lpo; the reward sees decoded pictures
    grpo            the whole group   -min(r A, clamp(r) A) + beta KL, r against the policy that sampled
    diffusion_dpo   (stored pairs)    -log sigmoid(-beta / 2 ((mse_w - mse_l)_theta - (mse_w - mse_l)_ref))

    select(scores (B, K), limit) -> Selected
    loss(log_policy (N, M), log_reference (N, M), batch of N, config) -> loss (N,), {clipped (N,), correct (N,)}

Rollout, trainer and checkpoint are the same for all. `log_policy` and `log_reference` are log densities of x_s, and
for stored pairs the negative error of the noise prediction, which bounds a log density from below up to a constant.
`clipped` is the share of a row's ratios that the clamp holds; `correct` is 1 where the policy raised the best one more
than the worst one, 0.5 where equally. The formulas and their sources are in lpo/preference/losses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lpo.config import Tune
from lpo.preference.losses import Statistics, diffusion_dpo_loss, group_advantages, grpo_loss, lpo_loss
from lpo.preference.selection import select_best_worst
from lpo.train.policy.steps import Steps


class Selected(NamedTuple):
    """chosen (B, M): the candidates to learn from, best first, worst last. advantage (B, M). keep and gap (B,)."""

    chosen: torch.Tensor
    advantage: torch.Tensor
    keep: torch.Tensor
    gap: torch.Tensor


Select = Callable[[torch.Tensor, "torch.Tensor | float"], Selected]
Loss = Callable[[torch.Tensor, torch.Tensor, Any, Tune], tuple[torch.Tensor, Statistics]]


class Method(NamedTuple):
    """select is None where nothing is sampled: the method learns from stored pairs."""

    select: Select | None
    loss: Loss


def best_and_worst(scores: torch.Tensor, limit: torch.Tensor | float) -> Selected:
    """The pair of every row, M = 2; kept where its measure is above the limit."""
    best, worst, keep, gap = select_best_worst(scores, limit)
    advantage = torch.ones_like(scores[:, :2])
    advantage[:, 1] = -1
    return Selected(torch.stack([best, worst], dim=1), advantage, keep, gap)


def whole_group(scores: torch.Tensor, limit: torch.Tensor | float) -> Selected:
    """All K candidates, by falling score, with their advantages; the limit is one of best against worst."""
    _, _, keep, gap = select_best_worst(scores, limit)
    index = scores.argsort(dim=1, descending=True, stable=True)
    return Selected(index, group_advantages(scores).gather(1, index), keep, gap)


def pair_loss(
    log_policy: torch.Tensor, log_reference: torch.Tensor, batch: Steps, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """LPO and SPO, see `lpo_loss`."""
    return lpo_loss(
        log_policy[:, 0], log_reference[:, 0], log_policy[:, 1], log_reference[:, 1], config.beta, config.clip_epsilon
    )


def group_loss(
    log_policy: torch.Tensor, log_reference: torch.Tensor, batch: Steps, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """Step-wise GRPO, see `grpo_loss`; the mean over a group."""
    loss, found = grpo_loss(log_policy, batch.log_p, log_reference, batch.advantage, config.beta, config.clip_epsilon)
    change = (log_policy - log_reference).detach()
    correct = ((change[:, 0] - change[:, -1]).sign() + 1) / 2
    return loss.mean(1), {"clipped": found["clipped"].mean(1), "correct": correct, "kl": found["kl"].mean(1)}


def stored_pair_loss(
    log_policy: torch.Tensor, log_reference: torch.Tensor, batch: Any, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-DPO, see `diffusion_dpo_loss`; nothing is clamped."""
    mse, reference = -log_policy, -log_reference
    loss, found = diffusion_dpo_loss(mse[:, 0], reference[:, 0], mse[:, 1], reference[:, 1], config.beta)
    return loss, found | {"clipped": torch.zeros_like(found["correct"])}


METHODS: dict[str, Method] = {
    "lpo": Method(best_and_worst, pair_loss),
    "spo": Method(best_and_worst, pair_loss),
    "grpo": Method(whole_group, group_loss),
    "diffusion_dpo": Method(None, stored_pair_loss),
}
