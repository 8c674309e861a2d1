"""Losses on log densities and scores. All inputs are (B,) unless said otherwise; computed in float32 or wider.

    LPO             -log sigmoid(beta (log r_w - log r_l)),  r = clamp(p_theta / p_ref, 1 -+ eps)
    Bradley-Terry   -label_0 log sigmoid(d) - label_1 log sigmoid(-d) - entropy of the labels,  d = score_0 - score_1
    Thurstone       1 - sqrt(label_0 p) - sqrt(label_1 (1 - p)),  p = Phi(d / sqrt(2 s_u^2)),  s_u^2 = 2 s(t)^2 + c
    Diffusion-DPO   -log sigmoid(-beta / 2 ((mse_w - mse_l)_theta - (mse_w - mse_l)_ref))
    DGPO, SmPO      -log sigmoid(-beta / M sum of A_i ((mse_i)_theta - (mse_i)_ref)),  M images with advantages A
    Diffusion-KTO   1 - sigmoid(A beta (mse_ref - mse_theta - Q)),  A = 1 liked, -1 disliked
    GRPO            -min(r A, clamp(r, 1 -+ eps) A) + beta KL,  r = p_theta / p_sampling
    Diffusion-NFT   r |x0(v+) - x0|^2 / w+ + (1 - r) |x0(v-) - x0|^2 / w-,  v+ and v- on either side of the old model

A loss is (loss, statistics): loss (B,) carries gradients to the policy, statistics are detached tensors of its shape,
so that the caller can average them by timestep.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

Statistics = dict[str, torch.Tensor]


def lpo_loss(
    logp_policy_w: torch.Tensor,
    logp_ref_w: torch.Tensor,
    logp_policy_l: torch.Tensor,
    logp_ref_l: torch.Tensor,
    beta: float,
    clip_epsilon: float,
) -> tuple[torch.Tensor, Statistics]:
    """Step-level preference loss (LPO, arXiv 2502.01051; the clamp is of SPO, arXiv 2406.04314).

    Args:
        logp_*: log densities of winner (w) and loser (l) under policy and reference.
        beta: strength; the clamp bounds the argument of the sigmoid to beta log((1 + eps) / (1 - eps)).
        clip_epsilon: eps. A density whose ratio is outside has no gradient.

    Returns:
        loss, and statistics: clipped (share of the pair's two ratios outside the clamp), correct (1 where the policy
        raised the winner more than the loser, 0.5 where equally), ratio_w and ratio_l (not clamped).
    """
    _same_shape(logp_policy_w, logp_ref_w, logp_policy_l, logp_ref_l)
    change_w, change_l = _wide(logp_policy_w) - _wide(logp_ref_w), _wide(logp_policy_l) - _wide(logp_ref_l)
    # log clamp(exp(x), a, b) = clamp(x, log a, log b), which neither overflows nor divides by a tiny number.
    low, high = math.log1p(-clip_epsilon), math.log1p(clip_epsilon)
    loss = -F.logsigmoid(beta * (change_w.clamp(low, high) - change_l.clamp(low, high)))
    with torch.no_grad():
        outside = [((change < low) | (change > high)).to(loss.dtype) for change in (change_w, change_l)]
        statistics = {
            "clipped": (outside[0] + outside[1]) / 2,
            "correct": _correct(change_w - change_l),
            "ratio_w": change_w.exp(),
            "ratio_l": change_l.exp(),
        }
    return loss, statistics


def pairwise_loss(
    score_0: torch.Tensor, score_1: torch.Tensor, label_0: torch.Tensor, label_1: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Bradley-Terry loss of a reward model with ties, (): mean of weight times loss.

    A tie has labels 0.5, 0.5 and its loss less log 2 (the entropy of its labels), so that it is 0 at equal scores.

    Args:
        score_*: (B,). label_*: (B,), summing to 1. weight: (B,), of mean one over the data set.
    """
    _same_shape(score_0, score_1, label_0, label_1, weight)
    difference = _wide(score_0) - _wide(score_1)
    cross = -label_0 * F.logsigmoid(difference) - label_1 * F.logsigmoid(-difference)
    entropy = -torch.xlogy(label_0, label_0) - torch.xlogy(label_1, label_1)
    return (weight * (cross - entropy)).mean()


def thurstone_loss(
    score_0: torch.Tensor,
    score_1: torch.Tensor,
    label_0: torch.Tensor,
    label_1: torch.Tensor,
    weight: torch.Tensor,
    noise_level: torch.Tensor,
    variance_offset: float,
) -> torch.Tensor:
    """Noise-calibrated Thurstone likelihood with the fidelity loss (DiNa-LRM, arXiv 2602.11146), (): weighted mean.

    What a person sees in image i is u_i = score_i + s_u z_i, with independent z_i ~ N(0, 1). Then u_0 - u_1 is normal
    with mean d and variance 2 s_u^2, so P(u_0 > u_1) = Phi(d / sqrt(2 s_u^2)): the same d says less at a noisier t.
    The fidelity loss is one minus the Bhattacharyya coefficient of labels and (p, 1 - p); of a decided pair it is
    1 - sqrt(p), of a tie it is 0 at equal scores. It lies in [0, 1): a pair that is far wrong hardly pulls.

    Args:
        score_*, label_*, weight: as for `pairwise_loss`.
        noise_level: s(t), (B,), standard deviation of the noise in x_t. variance_offset: c > 0, 0.01 in the paper.
    """
    _same_shape(score_0, score_1, label_0, label_1, weight, noise_level)
    variance = 2 * _wide(noise_level) ** 2 + variance_offset
    z = (_wide(score_0) - _wide(score_1)) / (2 * variance) ** 0.5
    # sqrt(p) = exp(log(p) / 2), whose gradient stays finite where p underflows.
    root_0, root_1 = (torch.exp(0.5 * torch.special.log_ndtr(side)) for side in (z, -z))
    return (weight * (1 - label_0.sqrt() * root_0 - label_1.sqrt() * root_1)).mean()


def diffusion_dpo_loss(
    mse_policy_w: torch.Tensor,
    mse_ref_w: torch.Tensor,
    mse_policy_l: torch.Tensor,
    mse_ref_l: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-DPO (arXiv 2311.12908; what it calls T and omega is inside beta here).

    Args:
        mse_*: mean squared error of the noise prediction per example, at one t and one noise for both images.
        beta: 2000 to 5000 in the paper.

    Returns:
        loss, and statistics: correct (1 where the policy improved on the winner more than on the loser), margin
        (the argument of the sigmoid).
    """
    _same_shape(mse_policy_w, mse_ref_w, mse_policy_l, mse_ref_l)
    policy = _wide(mse_policy_w) - _wide(mse_policy_l)
    margin = -0.5 * beta * (policy - (_wide(mse_ref_w) - _wide(mse_ref_l)))
    return -F.logsigmoid(margin), {"correct": _correct(margin.detach()), "margin": margin.detach()}


def group_preference_loss(
    mse_policy: torch.Tensor, mse_ref: torch.Tensor, advantage: torch.Tensor, beta: float
) -> tuple[torch.Tensor, Statistics]:
    """Preference of the good images of a group over its bad ones (DGPO, arXiv 2510.08425), M images a group.

        loss = -log sigmoid(margin),   margin = -beta / M sum over i of A_i ((mse_i)_theta - (mse_i)_ref)

    Images with A > 0 are the better side, and |A| is the weight of each. DGPO's A is `group_advantages`, which sums to
    0 over a group, so what all errors of the group share cancels. A pair with A = 1, -1 is Diffusion-DPO. A pair
    with A = 2 a - 1, 1 - 2 a is SmPO (arXiv 2506.02698) with its soft label a: at a = 1/2 it has no gradient.

    Args:
        mse_*: (N, M), mean squared error of the noise prediction, at one t and one noise for the whole group.
        advantage: (N, M). beta: 100 to 2000 in DGPO, whose errors are those of the velocity.

    Returns:
        loss (N,), and statistics: correct (1 where the policy improved more on what has an advantage, 0.5 where
        equally), margin.
    """
    _same_shape(mse_policy, mse_ref, advantage)
    margin = -beta * (advantage * (_wide(mse_policy) - _wide(mse_ref))).mean(dim=1)
    return -F.logsigmoid(margin), {"correct": _correct(margin.detach()), "margin": margin.detach()}


def kto_loss(
    mse_policy: torch.Tensor, mse_ref: torch.Tensor, advantage: torch.Tensor, beta: float
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-KTO with the Kahneman-Tversky utility, a sigmoid (arXiv 2404.04465): single votes, no pairs.

        loss = 1 - sigmoid(A beta (g - Q)),   g = mse_ref - mse_theta,   Q = max(0, mean of g over the batch)

    g bounds the log ratio of policy and reference up to a constant. Q, which carries no gradient, is the point that
    gains and losses are felt from: a policy that improves on all images alike pleases nobody.

    Args:
        mse_*: (N,), mean squared error of the noise prediction. advantage: A, (N,), 1 liked, -1 disliked.
        beta: of the size of Diffusion-DPO's.

    Returns:
        loss, and statistics: correct (1 where the policy went the way of the vote, 0.5 where it stayed), margin (the
        argument of the sigmoid).
    """
    _same_shape(mse_policy, mse_ref, advantage)
    gain = _wide(mse_ref) - _wide(mse_policy)
    margin = advantage * beta * (gain - gain.detach().mean().clamp_min(0))
    return torch.sigmoid(-margin), {"correct": _correct((advantage * gain).detach()), "margin": margin.detach()}


def grpo_loss(
    logp_policy: torch.Tensor,
    logp_sampling: torch.Tensor,
    logp_ref: torch.Tensor,
    advantages: torch.Tensor,
    beta: float,
    clip_epsilon: float,
) -> tuple[torch.Tensor, Statistics]:
    """Step-wise GRPO (LPO, appendix B; objective and KL estimate are those of DeepSeekMath, arXiv 2402.03300).

        KL(theta || ref), per sample: exp(-x) + x - 1,  x = log p_theta - log p_ref

    Args:
        logp_*: of each candidate under the policy, the policy that sampled it and the reference; (B, K) or (B,).
        advantages: of the same shape (`group_advantages`).
        beta: weight of the KL. clip_epsilon: of the ratio.

    Returns:
        loss of the inputs' shape, and statistics: clipped (1 where the clamp takes the gradient), ratio, kl.
    """
    _same_shape(logp_policy, logp_sampling, logp_ref, advantages)
    policy = _wide(logp_policy)
    ratio = (policy - _wide(logp_sampling)).exp()
    clamped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    above = policy - _wide(logp_ref)
    kl = torch.expm1(-above) + above
    loss = -torch.minimum(ratio * advantages, clamped * advantages) + beta * kl
    with torch.no_grad():
        clipped = (clamped * advantages < ratio * advantages).to(loss.dtype)
    return loss, {"clipped": clipped, "ratio": ratio.detach(), "kl": kl.detach()}


def nft_loss(
    prediction: torch.Tensor,
    reference: torch.Tensor,
    old: torch.Tensor,
    target: torch.Tensor,
    slope: torch.Tensor,
    r: torch.Tensor,
    mixing: float,
    beta: float,
) -> tuple[torch.Tensor, Statistics]:
    """Diffusion-NFT on finished latents (arXiv 2509.16117), for any prediction type.

        v+ = (1 - b) old + b prediction,  v- = (1 + b) old - b prediction
        loss = (r |e+|^2 / w+ + (1 - r) |e-|^2 / w-) / b + beta |prediction - reference|^2
        e = x0(v) - x0 = slope (v - target),  w = mean |e|, without gradient

    |.|^2 is a mean over dimensions. A good picture (r = 1) draws the prediction towards itself, a bad one (r = 0) the
    mirror image of the prediction, which pushes the prediction away.

    Args:
        prediction, reference, old: outputs of the policy, of the base and of the old adapter, (B, ...).
        target: the output that would give the finished latent, x0(target) = x0. slope: d x0 / d output, (B,).
        r: `optimality`, (B,). mixing: b. beta: weight of the distance from the base.

    Returns:
        loss (B,), and statistics: correct (1 where the policy moved from old to the side that r asks for, 0.5 where it
        did not move or r is 1/2), distance (|prediction - reference|^2).
    """
    _same_shape(prediction, reference, old, target)
    _same_shape(slope, r)
    column = (len(r), *(1 for _ in prediction.shape[1:]))
    now, before, scale = _wide(prediction), _wide(old) - _wide(target), _wide(slope).view(column)
    step = now - _wide(target) - before

    def error(sign: int) -> torch.Tensor:
        e = (scale * (before + sign * mixing * step)).flatten(1)
        return e.square().mean(1) / e.detach().abs().mean(1).clamp_min(1e-5)

    distance = (now - _wide(reference)).square().flatten(1).mean(1)
    loss = (r * error(1) + (1 - r) * error(-1)) / mixing + beta * distance
    with torch.no_grad():
        nearer = before.square().flatten(1).mean(1) - (before + step).square().flatten(1).mean(1)
        statistics = {"correct": _correct(nearer * (r - 0.5)), "distance": distance.detach()}
    return loss, statistics


def _correct(margin: torch.Tensor) -> torch.Tensor:
    return (margin.sign() + 1) / 2


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _same_shape(*tensors: torch.Tensor) -> None:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise ValueError(f"expected one shape, got {', '.join(str(tuple(tensor.shape)) for tensor in tensors)}")
