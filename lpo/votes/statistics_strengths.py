"""Bradley-Terry strengths of all models that people voted on.

    P(i wins against j) = sigmoid(theta_i - theta_j)        sum_i theta_i = 0        ties count half a win

The strengths maximise the likelihood of the votes and of half a win for either side of every two models that met, so
that a model that won every vote has a finite strength (Haldane and Anscombe). With H the Hessian of the negative log
likelihood and s_i = (x_i - sigmoid(theta_a - theta_b)) (e_a - e_b) the score of vote i, vote i moves the strengths by
psi_i = H^+ s_i. Intervals are theta +- t sqrt(V), with V and its degrees of freedom over voters and prompts
(lpo/votes/statistics_levels.py).

Sources: Bradley and Terry 1952; Hunter 2004 on when the maximum exists. Ties as half wins, as in the win rates here.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit
from scipy.stats import t as student

from lpo.statistics import Figures
from lpo.votes.statistics_levels import two_level_variance

PRIOR = 0.5  # wins added to both sides of two models that met
Numbers = NDArray[np.float64]
Places = NDArray[np.int64]


def strengths(votes: pd.DataFrame) -> Figures:
    """{models: {name: {strength, low, high, votes, win_rate}}, left_out: names}, the strongest model first.

    votes: rows that count (`counted`). win_rate is the share against all opponents it met. Models that no chain of
    votes connects with the others cannot be compared: the largest connected group is kept, the rest is left out.
    """
    names = sorted({*votes["model_a"], *votes["model_b"]})
    first, second = (np.array([names.index(name) for name in votes[side]]) for side in ("model_a", "model_b"))
    met = first != second  # two samples of one model say nothing here
    rows, first, second = votes[met], first[met], second[met]
    kept = _largest(first, second, len(names)) if len(rows) else np.zeros(len(names), bool)
    left_out = [name for name, inside in zip(names, kept, strict=True) if not inside]
    if not kept.any():
        return {"models": {}, "left_out": left_out}
    inside, number = kept[first], kept.cumsum() - 1
    rows, first, second = rows[inside], number[first[inside]], number[second[inside]]
    shares = rows["share_a"].to_numpy(np.float64)
    theta, hessian = fit(first, second, shares, int(kept.sum()))
    score = np.zeros((len(rows), len(theta)))
    residual = shares - expit(theta[first] - theta[second])
    score[np.arange(len(rows)), first] = residual
    score[np.arange(len(rows)), second] -= residual
    influence = score @ np.linalg.pinv(hessian)
    variance, freedom = two_level_variance(influence, rows["voter"].to_numpy(), rows["prompt"].to_numpy())
    half = student.ppf(0.975, freedom) * np.sqrt(variance)
    found = {}
    compared = [name for name, inside in zip(names, kept, strict=True) if inside]
    for k in np.argsort(-theta, kind="stable"):
        mine = np.concatenate([shares[first == k], 1 - shares[second == k]])
        found[compared[k]] = {
            "strength": float(theta[k]), "low": float(theta[k] - half[k]), "high": float(theta[k] + half[k]),
            "votes": len(mine), "win_rate": float(mine.mean()),
        }  # fmt: skip
    return {"models": found, "left_out": left_out}


def fit(first: Places, second: Places, shares: Numbers, models: int) -> tuple[Numbers, Numbers]:
    """(theta (K,), H (K, K)) of votes in which first[i] (N,) got shares[i] of a win against second[i]."""
    wins = np.zeros((models, models))
    np.add.at(wins, (first, second), shares)
    np.add.at(wins, (second, first), 1 - shares)
    met = np.zeros_like(wins, dtype=bool)
    met[first, second] = met[second, first] = True
    wins += PRIOR * met
    played = wins + wins.T

    def loss(free: Numbers) -> tuple[float, Numbers]:
        gaps = np.subtract.outer(theta := np.append(free, 0.0), theta)
        return -float((wins * log_expit(gaps)).sum()), -(wins - played * expit(gaps)).sum(1)[:-1]

    def curvature(free: Numbers) -> Numbers:
        return _hessian(np.append(free, 0.0), played)[:-1, :-1]

    start = np.zeros(models - 1)
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9})
    theta = np.append(found.x, 0.0)
    return theta - theta.mean(), _hessian(theta, played)


def _hessian(theta: Numbers, played: Numbers) -> Numbers:
    chance = expit(np.subtract.outer(theta, theta))
    weight = played * chance * (1 - chance)
    return np.diag(weight.sum(1)) - weight


def _largest(first: Places, second: Places, models: int) -> NDArray[np.bool_]:
    """Which models (K,) are in the connected group with the most votes."""
    graph = np.zeros((models, models), bool)
    graph[first, second] = True
    _, group = connected_components(graph, directed=False)
    return np.asarray(group == np.bincount(group[first]).argmax())
