import math

import pytest
import torch

from lpo.preference.losses import (
    diffusion_dpo_loss,
    group_preference_loss,
    grpo_loss,
    kto_loss,
    lpo_loss,
    pairwise_loss,
    thurstone_loss,
)


def tensors(*rows: list[float], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=dtype) for row in rows]


def test_lpo_loss_by_hand() -> None:
    """beta 10, eps 0.1. Ratios 1.05 and 0.98 are inside, 1.5 and 0.5 are clamped to 1.1 and 0.9, the last are equal."""
    policy_w, policy_l = tensors([math.log(1.05), math.log(1.5), 0.0], [math.log(0.98), math.log(0.5), 0.0])
    zero = torch.zeros(3, dtype=torch.float64)
    loss, stats = lpo_loss(policy_w - 3, zero - 3, policy_l + 2, zero + 2, beta=10.0, clip_epsilon=0.1)
    # sigmoid(10 log(a / b)) = a^10 / (a^10 + b^10)
    expected = [math.log(1 + (0.98 / 1.05) ** 10), math.log(1 + (0.9 / 1.1) ** 10), math.log(2)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))
    assert stats["clipped"].tolist() == [0.0, 1.0, 0.0]
    assert stats["correct"].tolist() == [1.0, 1.0, 0.5]
    torch.testing.assert_close(stats["ratio_w"], torch.tensor([1.05, 1.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(stats["ratio_l"], torch.tensor([0.98, 0.5, 1.0], dtype=torch.float64))
    assert not any(value.requires_grad for value in stats.values())


def test_lpo_loss_is_the_published_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    policy_w, ref_w, policy_l, ref_l = torch.randn(4, 200, generator=generator, dtype=torch.float64) * 0.1
    ratio_w, ratio_l = ((p - r).exp().clamp(0.9, 1.1) for p, r in ((policy_w, ref_w), (policy_l, ref_l)))
    published = -torch.log(torch.sigmoid(20 * ratio_w.log() - 20 * ratio_l.log()))
    torch.testing.assert_close(lpo_loss(policy_w, ref_w, policy_l, ref_l, 20.0, 0.1)[0], published)


def test_lpo_gradient_raises_the_winner_and_lowers_the_loser() -> None:
    w, low = tensors([0.0, 0.03], [0.0, -0.02])
    w.requires_grad_(True)
    low.requires_grad_(True)
    zero = torch.zeros(2, dtype=torch.float64)
    lpo_loss(w, zero, low, zero, 500.0, 0.1)[0].sum().backward()
    assert w.grad is not None and low.grad is not None
    assert (w.grad < 0).all() and (low.grad > 0).all()
    torch.testing.assert_close(w.grad, -low.grad)
    assert w.grad[0].item() == pytest.approx(-250)  # beta sigmoid(0)


def test_lpo_pair_outside_the_clamp_has_no_gradient() -> None:
    w, low = tensors([0.2, 0.2, -0.2], [-0.2, 0.01, 0.2])
    w.requires_grad_(True)
    low.requires_grad_(True)
    zero = torch.zeros(3, dtype=torch.float64)
    loss, stats = lpo_loss(w, zero, low, zero, 500.0, 0.1)
    loss.sum().backward()
    assert w.grad is not None and low.grad is not None
    assert w.grad.tolist() == [0, 0, 0]
    assert low.grad[0] == 0 and low.grad[1] > 0 and low.grad[2] == 0
    assert stats["clipped"].tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lpo_is_finite_over_the_clip_square_and_far_outside(dtype: torch.dtype) -> None:
    axis = torch.cat([torch.linspace(-0.12, 0.12, 97), torch.tensor([-2000.0, -100.0, 100.0, 2000.0])]).to(dtype)
    w, low = (part.flatten().requires_grad_(True) for part in torch.meshgrid(axis, axis, indexing="ij"))
    zero = torch.zeros_like(w)
    loss, _ = lpo_loss(w, zero, low, zero, 500.0, 0.1)
    loss.sum().backward()
    assert w.grad is not None and low.grad is not None
    assert loss.isfinite().all() and w.grad.isfinite().all() and low.grad.isfinite().all()
    assert loss.dtype == torch.float32
    assert loss.max().item() == pytest.approx(500 * math.log(1.1 / 0.9), rel=1e-5)


def test_lpo_learns_in_the_corner_where_the_published_form_breaks() -> None:
    """The winner's ratio at 0.9, the loser's at 1.1: sigmoid(-100.3) is lost in float32, logsigmoid is not."""
    w, low = torch.tensor([math.log(0.9) + 1e-6], requires_grad=True), torch.tensor([math.log(1.1) - 1e-6])
    published = -torch.log(torch.sigmoid(500 * (w - low)))
    published.backward()
    assert w.grad is not None and not w.grad.isfinite().all()
    w.grad = None
    zero = torch.zeros(1)
    lpo_loss(w, zero, low, zero, 500.0, 0.1)[0].backward()
    assert w.grad is not None and w.grad.item() == pytest.approx(-500)


def test_lpo_gradcheck() -> None:
    policy_w, policy_l = tensors([0.01, -0.04, 0.3], [0.02, 0.05, -0.03])
    ref = torch.zeros(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda w, low: lpo_loss(w, ref, low, ref, 30.0, 0.1)[0], (policy_w.requires_grad_(), policy_l.requires_grad_())
    )


def test_pairwise_loss_by_hand() -> None:
    """Scores log 3 and 0: P(0 wins) = 3/4. Losses: log 4/3, log 4, and for the tie -(log 3/4 + log 1/4)/2 - log 2."""
    one = torch.ones(1, dtype=torch.float64)
    score_0, score_1 = one * math.log(3), one * 0
    cases = {(1.0, 0.0): math.log(4 / 3), (0.0, 1.0): math.log(4), (0.5, 0.5): math.log(4 / math.sqrt(3)) - math.log(2)}
    for (label_0, label_1), expected in cases.items():
        loss = pairwise_loss(score_0, score_1, one * label_0, one * label_1, one)
        assert loss.item() == pytest.approx(expected)


def test_pairwise_tie_is_zero_at_equal_scores_and_pulls_scores_together() -> None:
    scores = torch.tensor([4.0, 1.0], requires_grad=True)
    half, one = torch.full((1,), 0.5), torch.ones(1)
    assert pairwise_loss(one, one, half, half, one).item() == pytest.approx(0, abs=1e-7)
    pairwise_loss(scores[:1], scores[1:], half, half, one).backward()
    assert scores.grad is not None and scores.grad[0] > 0 > scores.grad[1]


def test_pairwise_loss_is_the_mean_of_weighted_losses() -> None:
    score_0, score_1, label = tensors([0.3, -1.0, 2.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5])
    weight = torch.tensor([0.5, 2.0, 0.5], dtype=torch.float64)
    single = [
        pairwise_loss(score_0[i : i + 1], score_1[i : i + 1], label[i : i + 1], 1 - label[i : i + 1], weight[:1] * 2)
        for i in range(3)
    ]
    expected = (0.5 * single[0] + 2 * single[1] + 0.5 * single[2]) / 3
    torch.testing.assert_close(pairwise_loss(score_0, score_1, label, 1 - label, weight), expected)


def test_pairwise_loss_is_symmetric_in_the_images() -> None:
    score_0, score_1, label, weight = tensors([0.3, -1.0], [0.0, 0.5], [1.0, 0.5], [1.0, 1.0])
    a = pairwise_loss(score_0, score_1, label, 1 - label, weight)
    torch.testing.assert_close(pairwise_loss(score_1, score_0, 1 - label, label, weight), a)


def test_pairwise_gradcheck_and_finite_far_away() -> None:
    score_0, score_1, label = tensors([0.3, -1.0, 2.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5])
    one = torch.ones(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: pairwise_loss(a, b, label, 1 - label, one), (score_0.requires_grad_(), score_1.requires_grad_())
    )
    far = torch.tensor([-500.0, 500.0], requires_grad=True)
    first = torch.tensor([1.0, 0.0])
    loss = pairwise_loss(far, -far, first, 1 - first, torch.ones(2))
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert far.grad is not None and far.grad.isfinite().all()


def test_thurstone_by_hand() -> None:
    """Noise 0.7, c = 0.02: s_u^2 = 2 * 0.49 + 0.02 = 1, so z = d / sqrt 2. d = sqrt 2: p = Phi(1); d = 0: p = 1/2."""
    one = torch.ones(1, dtype=torch.float64)
    p = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    cases = {
        (math.sqrt(2), 1.0): 1 - math.sqrt(p),
        (math.sqrt(2), 0.0): 1 - math.sqrt(1 - p),
        (math.sqrt(2), 0.5): 1 - math.sqrt(p / 2) - math.sqrt((1 - p) / 2),
        (0.0, 1.0): 1 - math.sqrt(0.5),
        (0.0, 0.5): 0.0,
    }
    for (difference, label), expected in cases.items():
        loss = thurstone_loss(one * difference, one * 0, one * label, one * (1 - label), one, one * 0.7, 0.02)
        assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_thurstone_believes_a_gap_less_where_there_is_more_noise() -> None:
    """Of a decided pair with the winner ahead the loss grows with the noise; it is the mean of weighted losses."""
    score_0, score_1, label, weight = tensors([1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.5, 1.5])
    losses = [
        thurstone_loss(score_0[:1], score_1[:1], label[:1], 1 - label[:1], label[:1], label[:1] * level, 0.01)
        for level in (0.02, 1.0)
    ]
    assert losses[0] < 1e-6 < 0.1 < losses[1]
    level = torch.tensor([0.02, 1.0], dtype=torch.float64)
    both = thurstone_loss(score_0, score_1, label, 1 - label, weight, level, 0.01)
    torch.testing.assert_close(both, (0.5 * losses[0] + 1.5 * losses[1]) / 2)


def test_thurstone_gradcheck_and_finite_far_away() -> None:
    score_0, score_1, label = tensors([0.3, -1.0, 2.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5])
    level, one = tensors([0.1, 0.5, 1.0], [1.0, 1.0, 1.0])
    assert torch.autograd.gradcheck(
        lambda a, b: thurstone_loss(a, b, label, 1 - label, one, level, 0.01),
        (score_0.requires_grad_(), score_1.requires_grad_()),
    )
    far = torch.tensor([-500.0, 500.0], requires_grad=True)
    first = torch.tensor([1.0, 1.0])
    loss = thurstone_loss(far, -far, first, 1 - first, torch.ones(2), torch.full((2,), 0.02), 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)  # one pair certainly wrong, one certainly right
    assert far.grad is not None and far.grad.isfinite().all()


def test_diffusion_dpo_by_hand() -> None:
    """beta 2000, winner's error down by 0.001, loser's unchanged: margin 1; mirrored: -1."""
    policy_w, ref_w, policy_l, ref_l = tensors([0.099, 0.1], [0.1, 0.1], [0.2, 0.199], [0.2, 0.2])
    loss, stats = diffusion_dpo_loss(policy_w, ref_w, policy_l, ref_l, 2000.0)
    torch.testing.assert_close(stats["margin"], torch.tensor([1.0, -1.0], dtype=torch.float64))
    expected = torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.e)], dtype=torch.float64)
    torch.testing.assert_close(loss, expected)
    assert stats["correct"].tolist() == [1.0, 0.0]


def test_group_preference_by_hand() -> None:
    """beta 30, K 3. Changes of the error -0.1, 0.1, 0 with advantages 2, -1, -1: margin -10 (-0.2 - 0.1) = 3."""
    policy, ref, advantage = (torch.tensor([row], dtype=torch.float64) for row in (
        [0.4, 0.6, 0.5], [0.5, 0.5, 0.5], [2.0, -1.0, -1.0],
    ))  # fmt: skip
    loss, stats = group_preference_loss(policy, ref, advantage, 30.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3)))
    assert stats["margin"].item() == pytest.approx(3) and stats["correct"].item() == 1
    # What all errors of a group share cancels, since advantages sum to 0.
    torch.testing.assert_close(group_preference_loss(policy + 0.7, ref, advantage, 30.0)[0], loss)


def test_a_group_of_a_pair_is_diffusion_dpo_and_a_soft_label_of_one_half_has_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.rand(2, 7, 2, generator=generator, dtype=torch.float64)
    sides = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(7, 2)
    expected = diffusion_dpo_loss(policy[:, 0], ref[:, 0], policy[:, 1], ref[:, 1], 3.0)[0]
    torch.testing.assert_close(group_preference_loss(policy, ref, sides, 3.0)[0], expected)
    certainty = torch.tensor([1.0, 0.5, 0.0, -0.5, 0.0, 1.0, 0.25], dtype=torch.float64)  # 2 a - 1
    policy.requires_grad_()
    group_preference_loss(policy, ref, sides * certainty[:, None], 3.0)[0].sum().backward()
    assert policy.grad is not None
    assert torch.equal(policy.grad[:, 0].sign(), certainty.sign())  # a lower error of the chosen one, unless a < 1/2
    torch.testing.assert_close(policy.grad[:, 0], -policy.grad[:, 1])


def test_kto_by_hand() -> None:
    """beta 10. Gains 0.3 and 0.1: Q 0.2, margins 10 (0.1) liked and -10 (-0.1) disliked, both 1: 1 - sigmoid(1)."""
    ref, votes = torch.full((2,), 0.5, dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    policy = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
    loss, stats = kto_loss(policy, ref, votes, 10.0)
    torch.testing.assert_close(loss, torch.full_like(loss, 1 / (1 + math.e)))
    assert stats["correct"].tolist() == [1.0, 0.0]  # both errors fell, and the second image was disliked
    loss.sum().backward()
    slope = 10 * math.e / (1 + math.e) ** 2  # beta sigmoid'(1); Q carries no gradient
    torch.testing.assert_close(policy.grad, torch.tensor([slope, -slope], dtype=torch.float64))
    # A policy that became worse on all images has Q = 0, not a negative one.
    worse, stats = kto_loss(ref + 0.1, ref, votes, 10.0)
    torch.testing.assert_close(stats["margin"], torch.tensor([-1.0, 1.0], dtype=torch.float64))


def test_diffusion_dpo_gradcheck_and_direction() -> None:
    w, low = tensors([0.1, 0.3], [0.2, 0.1])
    w.requires_grad_(True)
    low.requires_grad_(True)
    ref = torch.full((2,), 0.2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: diffusion_dpo_loss(a, ref, b, ref, 5.0)[0], (w, low))
    diffusion_dpo_loss(w, ref, low, ref, 5.0)[0].sum().backward()
    assert w.grad is not None and low.grad is not None
    assert (w.grad > 0).all() and (low.grad < 0).all()  # a smaller error of the winner is better


def test_grpo_by_hand() -> None:
    """eps 0.1: the clamp takes the gradient only where a ratio has gone too far in its own favour."""
    ratio = torch.tensor([1.05, 1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0], dtype=torch.float64)
    logp = ratio.log().requires_grad_(True)
    zero = torch.zeros(5, dtype=torch.float64)
    loss, stats = grpo_loss(logp, zero, logp.detach(), advantages, beta=0.1, clip_epsilon=0.1)
    torch.testing.assert_close(loss.detach(), torch.tensor([-2.1, -2.2, 3.0, -1.0, 1.8], dtype=torch.float64))
    assert stats["clipped"].tolist() == [0, 1, 0, 0, 1]
    loss.sum().backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.tensor([-2.1, 0.0, 3.0, -1.0, 0.0], dtype=torch.float64))


def test_grpo_kl_is_zero_at_the_reference_and_pulls_towards_it() -> None:
    logp = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.float64)
    loss, stats = grpo_loss(logp, zero, zero, zero, beta=0.1, clip_epsilon=0.1)
    expected = torch.tensor([math.exp(0.5) - 1.5, 0.0, math.exp(-0.5) - 0.5], dtype=torch.float64)
    torch.testing.assert_close(stats["kl"], expected)
    loss.sum().backward()
    assert logp.grad is not None and logp.grad.sign().tolist() == [-1, 0, 1]


def test_grpo_gradcheck_on_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    logp, old, ref, advantages = torch.randn(4, 3, 4, generator=generator, dtype=torch.float64) * 0.02
    assert torch.autograd.gradcheck(
        lambda x: grpo_loss(x, old, ref, 50 * advantages, 0.1, 0.2)[0], (logp.clone().requires_grad_(),)
    )


def test_shapes_must_agree() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match="one shape"):
        lpo_loss(two, two, two, three, 1.0, 0.1)
    with pytest.raises(ValueError, match="one shape"):
        pairwise_loss(two, two, two, two, three)
    with pytest.raises(ValueError, match="one shape"):
        thurstone_loss(two, two, two, two, two, three, 0.1)
    with pytest.raises(ValueError, match="one shape"):
        diffusion_dpo_loss(two, two, two, three, 1.0)
    with pytest.raises(ValueError, match="one shape"):
        grpo_loss(two, two, two, three, 1.0, 0.1)
