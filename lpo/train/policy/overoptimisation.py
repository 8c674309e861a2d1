"""Detection of reward hacking and of collapse, from the validations of a run.

    V_k  gain of the independent scorers over the base      R_k  gain of the reward that is climbed
    D_k  diversity: distance between pictures of one prompt over seeds, divided by the base's own

    b = argmax over j <= k of V_j  (j = 0 is the base: V = R = 0)
    hacking   if V_k <= V_b, k after b, and R_k - R_b > reward_margin
    collapse  if D_k < diversity_floor
    drift     if the mean distance of the steps' means from the base's, in standard deviations of a step, > drift_limit

Gains are in standard deviations of the base's scores over prompts. The judge that evaluates has no say here, or its
verdict would be one that was selected with. Over-optimisation in this sense: Gao et al., arXiv 2210.10760.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lpo.config import Guard


def warnings(history: Sequence[Mapping[str, Any]], guard: Guard) -> list[str]:
    """What the newest entry of a history shows, as sentences; none where the guard is off.

    Hacking and collapse show where the entry was validated, drift where it learned from steps.
    """
    if guard.action == "off" or not history:
        return []
    drift = history[-1].get("drift", 0.0)
    found = [] if drift <= guard.drift_limit else [
        f"drift: the steps' means lie {drift:.2f} standard deviations from the base's; a larger beta restrains them"
    ]  # fmt: skip
    if "reward" not in history[-1]:
        return found
    points = [(0.0, 0.0)] + [(h["validation"], h["reward"]) for h in history if "reward" in h]
    best = max(range(len(points)), key=lambda k: points[k][0])
    value, reward = points[-1]
    climbed = reward - points[best][1]
    if best < len(points) - 1 and climbed > guard.reward_margin:
        found.append(
            f"reward hacking: since its best validation the reward rose by {climbed:.2f} standard deviations while "
            f"the scorers went from {points[best][0]:.3f} to {value:.3f}"
        )
    if history[-1]["diversity"] < guard.diversity_floor:
        found.append(f"collapse: pictures of one prompt differ by {history[-1]['diversity']:.2f} of what the base's do")
    return found
