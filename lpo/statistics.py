"""Means, shares and win rates with 95 % intervals that respect prompts.

Images of one prompt are alike, so prompts are what is drawn again, each with all its images. With s_p the sum and n_p
the number of values of prompt p, and p* one of R draws of P prompts with replacement:
    value  = sum_p s_p / sum_p n_p
    draw_r = sum_{p* in r} s_p* / sum_{p* in r} n_p*          low, high = the 2.5 % and 97.5 % quantiles of draw_1..R
A share that came out the same in every draw (all prompts won, say) would get an interval of width zero; it gets
Wilson's over prompts instead.

Shapes: values (N,) numbers or bools, groups (N,) prompt ids of any sortable type. Every function gives a dict of plain
numbers, ready for JSON; `prompts` is P. The order of the rows does not matter.
Source: percentile bootstrap, Efron and Tibshirani 1993, section 13.3; cluster bootstrap, Davison and Hinkley 1997, 3.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpo.errors import LpoError

RESAMPLES = 2000
Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution

Figures = dict[str, Any]
Groups = Sequence[Any] | NDArray[Any]


def mean(values: ArrayLike, groups: Groups, resamples: int = RESAMPLES, seed: int = 0) -> Figures:
    """Mean of values: {value, low, high, prompts}.

    Raises LpoError on no values, a value that is not finite, or another number of groups than of values.
    """
    data = _checked(values, groups)
    means, prompts = _resampled(data, groups, resamples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": float(data.mean()), "low": float(low), "high": float(high), "prompts": prompts}


def share(hits: ArrayLike, groups: Groups, resamples: int = RESAMPLES, seed: int = 0) -> Figures:
    """Mean of values in 0..1, for instance an accuracy: {value, low, high, prompts}. Raises as mean does."""
    result = mean(hits, groups, resamples, seed)
    if result["low"] == result["high"]:
        result["low"], result["high"] = wilson(result["value"] * result["prompts"], result["prompts"])
    return result


def win_rate(
    values_a: ArrayLike, values_b: ArrayLike, groups: Groups, resamples: int = RESAMPLES, seed: int = 0
) -> Figures:
    """Share of pairs that a wins, P(a > b) + P(a = b) / 2: {value, low, high, ties, prompts}.

    values_a[i] and values_b[i] (N,) belong to the same prompt and seed. `ties` is the share of pairs with a = b.
    Raises as mean does.
    """
    a, b = _checked(values_a, groups), _checked(values_b, groups)
    ties = a == b
    return share((a > b) + 0.5 * ties, groups, resamples, seed) | {"ties": float(ties.mean())}


def mean_difference(
    values_a: ArrayLike, values_b: ArrayLike, groups: Groups, resamples: int = RESAMPLES, seed: int = 0
) -> Figures:
    """Mean of values_a - values_b, paired: {value, low, high, prompts}. Raises as mean does."""
    return mean(_checked(values_a, groups) - _checked(values_b, groups), groups, resamples, seed)


def mean_of_strata(
    values: ArrayLike, groups: Groups, strata: Groups, resamples: int = RESAMPLES, seed: int = 0
) -> Figures:
    """Mean over strata of their means, each stratum with the same weight: {value, low, high, prompts}.

        value = (1/K) sum_k mean of the values of stratum k

    The prompts of each stratum are drawn again among themselves. strata: (N,) names. Raises as mean does.
    """
    data, names = _checked(values, groups), np.asarray(strata)
    kinds = np.unique(names)
    means, prompts = np.zeros(resamples), 0
    value = 0.0
    for place, kind in enumerate(kinds):
        mine = names == kind
        drawn, count = _resampled(data[mine], np.asarray(groups)[mine], resamples, seed + place)
        means, prompts, value = means + drawn, prompts + count, value + float(data[mine].mean())
    low, high = np.quantile(means / len(kinds), (0.025, 0.975))
    return {"value": value / len(kinds), "low": float(low), "high": float(high), "prompts": prompts}


def wilson(hits: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share of independent trials (no prompt twice): (low, high).

        centre = (k + z^2/2) / (n + z^2)     half = z sqrt(k (n - k) / n + z^2/4) / (n + z^2)

    hits k may be a half, where ties count half. Source: Wilson 1927. Raises LpoError unless 0 <= k <= n and n >= 1.
    """
    if not (trials >= 1 and 0 <= hits <= trials):
        raise LpoError(f"{hits} hits of {trials} trials are no share", "lpo.statistics.wilson")
    scale = trials + Z95**2
    centre = (hits + Z95**2 / 2) / scale
    half = Z95 * math.sqrt(hits * (trials - hits) / trials + Z95**2 / 4) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def _checked(values: ArrayLike, groups: Groups) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    where = "lpo.statistics"
    if data.ndim != 1 or len(data) == 0 or len(data) != len(groups):
        raise LpoError(f"values of shape {data.shape} for {len(groups)} group ids", where, "give one id for each value")
    if not np.isfinite(data).all():
        first = int(np.flatnonzero(~np.isfinite(data))[0])
        raise LpoError(f"{int((~np.isfinite(data)).sum())} values are not finite, the first at {first}", where)
    return data


def _resampled(data: NDArray[np.float64], groups: Groups, resamples: int, seed: int) -> tuple[NDArray[np.float64], int]:
    """(draw_1..R (R,), number of prompts)."""
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=data), np.bincount(index)
    drawn = np.random.default_rng(seed).integers(0, len(names), (resamples, len(names)), dtype=np.int32)
    return sums[drawn].sum(1) / counts[drawn].sum(1), len(names)
