"""When enough votes are in: bounds on a win share that hold at every vote at once, however often somebody looks.

A gambler bets the part c of his wealth, at fair odds, that votes x in 0..1 are higher than m on average. After n votes

    W_n(m) = mean over c of prod_{i <= n} (1 + c (x_i / m - 1))        c of K(c), the arcsine distribution on 0..1

If no vote is expected to be above m given the votes before it, W is a supermartingale that starts at 1. It then reaches
2 / error with a probability of at most error / 2, whenever one looks (Ville's inequality). So

    low = the largest m with W_n(m) >= 2 / error        high = 1 - low of the votes 1 - x

hold together at all n with probability 1 - error. W falls in m, and depends on how often each x occurs but not on
their order. Ties are x = 1/2; they narrow the bounds, as they are certain to lie in the middle.

This holds for votes whose pairs and voters come by lot. That voters differ is not counted here: the interval in
lpo/votes/statistics.py counts it, but for one look. The gate asks for both.

Sources: Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", sections 3 and 4;
the arcsine mixture over constant bets is Cover's universal portfolio, Orabona and Jun 2024.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from lpo.statistics import Figures

ERROR = 0.05
ALIKE = 0.1  # models are alike where the share is sure to lie within 50% +- this
BETTER, WORSE, SAME = "better", "worse", "alike"
BETS = np.sin(np.pi * (np.arange(64) + 0.5) / 128) ** 2  # equal weights on these are the arcsine distribution
MOST = 64  # times the votes that are there: beyond it no forecast is made
Numbers = NDArray[np.float64]


def stopping(shares: ArrayLike, error: float = ERROR, alike: float = ALIKE) -> Figures:
    """Whether the votes are enough to stop: {low, high, error, verdict, more_votes}.

    Args:
        shares: (N,) in 0..1, 1 where the model won; none at all is allowed.
        error: of the bounds, at all looks together.
        alike: half the width around 50% within which models count as alike.

    Returns:
        verdict: "better" (low > 50%), "worse" (high < 50%), "alike" (both within 50% +- alike), None: vote on.
        more_votes: votes still needed if further ones go on like these. 0 with a verdict, None if unknown.
    """
    values, counts = np.unique(np.asarray(shares, dtype=np.float64), return_counts=True)
    votes = counts.astype(np.float64)
    low, high = bounds(values, votes, error)
    found = _verdict(low, high, alike)
    more = 0 if found else _more(values, votes, error, alike)
    return {"low": low, "high": high, "error": error, "verdict": found, "more_votes": more}


def bounds(values: ArrayLike, counts: ArrayLike, error: float = ERROR) -> tuple[float, float]:
    """(low, high) of the mean after counts[k] votes of values[k]."""
    x, n = np.asarray(values, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    return _low(x, n, error), 1 - _low(1 - x, n, error)


def log_wealth(values: Numbers, counts: Numbers, m: float) -> float:
    """log W_n(m), 0 < m <= 1."""
    logs = (counts[:, None] * np.log1p(BETS * (values[:, None] / m - 1))).sum(0)
    return float(logsumexp(logs) - math.log(len(BETS)))


def _low(values: Numbers, counts: Numbers, error: float) -> float:
    goal, least = math.log(2 / error), 1e-9
    if log_wealth(values, counts, least) < goal:
        return 0.0
    return float(brentq(lambda m: log_wealth(values, counts, m) - goal, least, 1.0))


def _verdict(low: float, high: float, alike: float) -> str | None:
    if low > 0.5:
        return BETTER
    if high < 0.5:
        return WORSE
    return SAME if 0.5 - alike < low and high < 0.5 + alike else None


def _more(values: Numbers, counts: Numbers, error: float, alike: float) -> int | None:
    """The least number of further votes, in the same proportions, that brings a verdict."""
    total = int(counts.sum())
    if total == 0:
        return None

    def enough(more: int) -> bool:
        return _verdict(*bounds(values, counts * (1 + more / total), error), alike) is not None

    least, most = 0, 1
    while not enough(most):
        if most > MOST * total:
            return None
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if enough(middle) else (middle, most)
    return most
