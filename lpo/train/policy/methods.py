"""The methods: how scored candidates become something to learn from, and the loss.

    method          select            loss
    lpo             best and worst    -log sigmoid(beta (log r_w - log r_l)), r clamped to 1 -+ eps
    spo             as lpo            as lpo; the reward sees decoded pictures
    grpo            the whole group   -min(r A, clamp(r) A) + beta KL, r against the policy that sampled
    mixgrpo         as grpo           as grpo; steps outside of a sliding window are deterministic and not learned from
    dense_grpo      as grpo           as grpo; A of the gain S(x_s, s) - S(x_t, t) over all prompts of a step
    diffusion_dpo   (stored pairs)    -log sigmoid(-beta / 2 ((mse_w - mse_l)_theta - (mse_w - mse_l)_ref))
    smpo            (stored pairs)    the same with beta times 2 a - 1, a the soft label of the scores
    kto             (single votes)    1 - sigmoid(A beta (mse_ref - mse_theta - Q)),  A = 1 liked, -1 disliked
    dgpo            (finished groups) -log sigmoid(-beta / K sum of A_i ((mse_i)_theta - (mse_i)_ref))
    nft             (finished)        r |x0(v+) - x0|^2 / w+ + (1 - r) |x0(v-) - x0|^2 / w- + beta |v - v_ref|^2

    select(scores (B, K), limit) -> Selected
    loss(policy, reference, batch of N, config) -> loss (N,), {clipped (N,), correct (N,)}

Trainer and checkpoint are the same for all. `policy` and `reference` are log densities (N, M) of x_s. For stored pairs,
votes and finished groups they are the negative errors of the noise prediction, which bound a log density from below
up to a constant. For finished latents they are the outputs of the model, (N, C, h, w).
`clipped` is the share of a row's ratios that the clamp holds; `correct` is 1 where the policy raised the best one more
than the worst one, 0.5 where equally. The formulas and their sources are in lpo/preference/losses.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from lpo.config import Tune
from lpo.preference.advantages import group_advantages
from lpo.preference.losses import (
    Statistics,
    diffusion_dpo_loss,
    group_preference_loss,
    grpo_loss,
    kto_loss,
    lpo_loss,
    nft_loss,
)
from lpo.preference.selection import select_best_worst
from lpo.train.policy.steps import Finished, NoisyGroups, Steps


class Selected(NamedTuple):
    """chosen (B, M): the candidates to learn from, best first, worst last. advantage (B, M). keep and gap (B,)."""

    chosen: torch.Tensor
    advantage: torch.Tensor
    keep: torch.Tensor
    gap: torch.Tensor


Select = Callable[[torch.Tensor, "torch.Tensor | float"], Selected]
Loss = Callable[[torch.Tensor, torch.Tensor, Any, Tune], tuple[torch.Tensor, Statistics]]


class Method(NamedTuple):
    """What is learned from (lpo/train/policy/steps.py), and how; select where it is steps."""

    batch: Literal["steps", "pairs", "soft pairs", "votes", "finished", "finished groups"]
    select: Select | None
    loss: Loss
    window: bool = False  # steps are random and learned from inside of `tune.window` alone
    gain: bool = False  # a candidate's credit is what its step gained, not its rank in the group

    @property
    def stored(self) -> bool:
        """Whether it learns from what people chose, so that nothing is sampled."""
        return self.batch in ("pairs", "soft pairs", "votes")

    @property
    def finished(self) -> bool:
        """Whether it learns from finished latents of a slow adapter, without guidance."""
        return self.batch in ("finished", "finished groups")


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


def noisy_group_loss(
    log_policy: torch.Tensor, log_reference: torch.Tensor, batch: NoisyGroups, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """SmPO and DGPO, see `group_preference_loss`; nothing is clamped."""
    loss, found = group_preference_loss(-log_policy, -log_reference, batch.advantage, config.beta)
    return loss, found | {"clipped": torch.zeros_like(found["correct"])}


def vote_loss(
    log_policy: torch.Tensor, log_reference: torch.Tensor, batch: NoisyGroups, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-KTO, see `kto_loss`; Q is a mean over a micro-batch, and nothing is clamped."""
    loss, found = kto_loss(-log_policy[:, 0], -log_reference[:, 0], batch.advantage[:, 0], config.beta)
    return loss, found | {"clipped": torch.zeros_like(found["correct"])}


def finished_loss(
    prediction: torch.Tensor, reference: torch.Tensor, batch: Finished, config: Tune
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-NFT, see `nft_loss`; nothing is clamped."""
    loss, found = nft_loss(
        prediction, reference, batch.old, batch.target, batch.slope, batch.r, config.nft.mixing, config.beta
    )
    return loss, found | {"clipped": torch.zeros_like(found["correct"])}


METHODS: dict[str, Method] = {
    "lpo": Method("steps", best_and_worst, pair_loss),
    "spo": Method("steps", best_and_worst, pair_loss),
    "grpo": Method("steps", whole_group, group_loss),
    "mixgrpo": Method("steps", whole_group, group_loss, window=True),
    "dense_grpo": Method("steps", whole_group, group_loss, gain=True),
    "diffusion_dpo": Method("pairs", None, stored_pair_loss),
    "smpo": Method("soft pairs", None, noisy_group_loss),
    "kto": Method("votes", None, vote_loss),
    "dgpo": Method("finished groups", None, noisy_group_loss),
    "nft": Method("finished", None, finished_loss),
}
