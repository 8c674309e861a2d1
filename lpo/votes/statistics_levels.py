"""Variance and intervals of votes, with voters and prompts as two levels that were both drawn.

Votes of one voter resemble each other, and so do votes on one prompt. Let an estimate move by psi_i (i = 1..N) with
vote i, such as psi_i = (x_i - mean) / N of a mean. With G groups g of one level,

    V_level = G / (G - 1) sum_g (sum_{i in g} psi_i)^2        levels: voters v, prompts p, cells c (voter and prompt)
    V = max(V_v - V_c, 0) + max(V_p - V_c, 0) + V_c

A level with one group has no measurable variance: its component is 0, and the interval speaks of that voter or prompt.
The degrees of freedom of V are those of its components that are above 0, by Satterthwaite's formula. With few voters
who differ, an interval is therefore wide.

Sources: Cameron, Gelbach and Miller 2011, equation 2.10, V_v + V_p - V_c; here no component is below zero, as a
variance cannot be. Satterthwaite 1946.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from lpo.statistics import Figures, Groups, wilson

Numbers = NDArray[np.float64]


def two_level_variance(psi: ArrayLike, voters: Groups, prompts: Groups) -> tuple[Numbers, Numbers]:
    """(V, degrees of freedom), each (K,), of K estimates with influences psi (N, K) of N votes."""
    influences = np.asarray(psi, dtype=np.float64)
    voter, prompt = (np.unique(np.asarray(groups), return_inverse=True)[1] for groups in (voters, prompts))
    cell = np.unique(voter * (prompt.max() + 1) + prompt, return_inverse=True)[1]
    cells, cell_freedom = _between(influences, cell)
    total, spread = cells.copy(), cells**2 / cell_freedom
    for index in (voter, prompt):
        level, freedom = _between(influences, index)
        beyond = level - cells
        total += beyond.clip(min=0)
        spread += np.where(beyond > 0, level**2 / freedom, 0.0)
    return total, np.divide(total**2, spread, out=np.full_like(total, cell_freedom), where=spread > 0)


def share_interval(shares: ArrayLike, voters: Groups, prompts: Groups) -> Figures:
    """Mean of shares (N,) in 0..1 with its 95% interval: {value, low, high, votes, voters, prompts}.

    The interval is Wilson's, with n = value (1 - value) / V votes that would say as much if all were independent, and
    Student's quantile. Where all votes are equal, V says nothing, and n is the number of prompts.
    """
    data = np.asarray(shares, dtype=np.float64)
    value, people, asked = float(data.mean()), len(np.unique(np.asarray(voters))), len(np.unique(np.asarray(prompts)))
    variance, freedom = two_level_variance((data - value)[:, None] / len(data), voters, prompts)
    if variance[0] > 0:
        trials, z = value * (1 - value) / float(variance[0]), float(student.ppf(0.975, freedom[0]))
        scale = trials + z**2
        centre = (trials * value + z**2 / 2) / scale
        half = z * math.sqrt(trials * value * (1 - value) + z**2 / 4) / scale
        low, high = max(0.0, centre - half), min(1.0, centre + half)
    else:
        low, high = wilson(value * asked, asked)
    return {"value": value, "low": low, "high": high, "votes": len(data), "voters": people, "prompts": asked}


def _between(influences: Numbers, index: NDArray[np.int64]) -> tuple[Numbers, int]:
    """(V_level (K,), G - 1 but at least 1) of one level whose groups are numbered by index (N,)."""
    count = int(index.max()) + 1
    sums = np.stack([np.bincount(index, weights=column) for column in influences.T], axis=1)
    scale = count / (count - 1) if count > 1 else 0.0
    return (sums**2).sum(0) * scale, max(count - 1, 1)
