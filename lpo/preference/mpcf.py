"""Multi-preference consistent filtering: which human preferences to believe (LPO, arXiv 2502.01051).

    gap_k = score_k(winner) - score_k(loser),  k in aesthetic, clip, vqa
    a win-lose pair is kept if gap_k >= margin_k for every k
    a tie is kept if |gap_k| <= tie margin_k for every k

    gaps = gaps_from_scores(pairs, scores)                      one row a pair, in the order of pairs
    verdict = mpcf(gaps, pairs["label_0"] == pairs["label_1"], margins, ties)
    kept, dropped = pairs[verdict["keep"]], pairs[~verdict["keep"]]

Frames of N pairs share one index; a gap has the unit of its score.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lpo.errors import LpoError

SCORES = ["aesthetic", "clip", "vqa"]


def gaps_from_scores(pairs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Score gaps of pairs, winner less loser; image 0 less image 1 where the labels tie.

    Joined on image uids, never on row positions (the published code joins on positions).

    Args:
        pairs: image_0_uid, image_1_uid, label_0, label_1.
        scores: image_uid, aesthetic, clip, vqa; one row an image.

    Returns:
        aesthetic, clip, vqa, with the index of `pairs`.

    Raises:
        LpoError: if an image of a pair has no scores, or an image is scored twice.
    """
    twice = scores["image_uid"][scores["image_uid"].duplicated()].unique()
    if len(twice):
        raise LpoError(f"{len(twice)} images are scored twice: {_first(twice)}", "scores", "score every image once")
    by_uid = scores.set_index("image_uid")[SCORES]
    uids = pd.concat([pairs["image_0_uid"], pairs["image_1_uid"]])
    missing = uids[~uids.isin(by_uid.index)].unique()
    if len(missing):
        raise LpoError(f"{len(missing)} images of pairs have no scores: {_first(missing)}", "scores", "run `lpo score`")
    first, second = (by_uid.loc[pairs[name]].to_numpy(float) for name in ("image_0_uid", "image_1_uid"))
    sign = np.where(pairs["label_1"] > pairs["label_0"], -1.0, 1.0)[:, None]
    return pd.DataFrame(sign * (first - second), index=pairs.index, columns=SCORES)


def mpcf(
    gaps: pd.DataFrame, is_tie: pd.Series, margins: Mapping[str, float] | None, ties: Mapping[str, float],
    strict: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Decide every pair, and say why.

    Args:
        gaps: aesthetic, clip, vqa: winner less loser (of ties in either order).
        is_tie: bool, of the same index.
        margins: the least gap a score, of win-lose pairs; None keeps all pairs, ties too.
        ties: the largest |gap| a score, of ties.
        strict: the gap of a win-lose pair must be above its margin, as in the released code; the paper writes >=.

    Returns:
        A frame with the index of `gaps`:
        keep    bool
        reason  every score that failed, such as "mpcf: aesthetic -0.71 < -0.5; vqa -0.02 < 0" or
                "mpcf: tie |clip| 0.05 > 0.03"; "" for kept pairs
        failed_aesthetic, failed_clip, failed_vqa   bool: the win-lose pair breaks this rule
        failed_tie                                  bool: the tie breaks any rule

    Raises:
        ValueError: if the two indices differ (a join by position is how gaps land on other pairs).
        LpoError: if a gap is NaN.
    """
    if not gaps.index.equals(is_tie.index):
        raise ValueError("gaps and is_tie must share one index")
    unknown = gaps.index[gaps[SCORES].isna().any(axis=1)]
    if len(unknown):
        raise LpoError(f"{len(unknown)} pairs have a NaN gap: rows {_first(unknown)}", "gaps", "correct the scores")
    tie = is_tie.to_numpy(bool)
    reasons: list[list[str]] = [[] for _ in range(len(gaps))]
    failures = {f"failed_{name}": np.zeros(len(gaps), bool) for name in [*SCORES, "tie"]}
    for name in SCORES if margins is not None else []:
        gap, least, most = gaps[name].to_numpy(float), margins[name], ties[name]  # type: ignore[index]
        low, sign = (gap <= least, "<=") if strict else (gap < least, "<")
        wrong = np.where(tie, np.abs(gap) > most, low)
        failures[f"failed_{name}"] = wrong & ~tie
        failures["failed_tie"] |= wrong & tie
        for i in np.flatnonzero(wrong):
            reasons[i].append(
                f"tie |{name}| {abs(gap[i]):.4g} > {most:g}" if tie[i] else f"{name} {gap[i]:.4g} {sign} {least:g}"
            )
    reason = ["mpcf: " + "; ".join(failed) if failed else "" for failed in reasons]
    keep = np.array([not failed for failed in reasons], dtype=bool)
    decided = {"keep": keep, "reason": pd.Series(reason, index=gaps.index, dtype=str)}
    return pd.DataFrame(decided | failures, index=gaps.index)


def soft_labels(pairs: pd.DataFrame) -> np.ndarray:
    """a in (0, 1) of N decided pairs, (N,): how probably the scores prefer the chosen image (SmPO, arXiv 2506.02698).

        a = sigmoid(mean over k of gap_k / s_k),   s_k = root mean square of gap_k over these pairs

    SmPO takes a from one reward model; here the three scores of MPCF count alike. A pair whose scores do not differ has
    a = 1/2. One whose scores contradict the label has a < 1/2, so its label is not believed.

    Args:
        pairs: gap_aesthetic, gap_clip, gap_vqa.

    Raises:
        LpoError: if a gap is NaN, as in a data set that was filtered by no scores.
    """
    gaps = pairs[[f"gap_{name}" for name in SCORES]].to_numpy(float)
    unknown = int(np.isnan(gaps).any(axis=1).sum())
    if unknown:
        remedy = "filter by scores (filter.strategy), or set tune.method to diffusion_dpo"
        raise LpoError(f"{unknown} pairs have no score gaps, so they have no soft label", "data/filtered", remedy)
    scale = np.sqrt(np.square(gaps).mean(axis=0, keepdims=True))
    z = (gaps / np.where(scale > 0, scale, 1.0)).mean(axis=1)
    return np.exp(-np.logaddexp(0.0, -z))


def _first(values: object) -> str:
    shown = [str(value) for value in values]  # type: ignore[attr-defined]
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")
