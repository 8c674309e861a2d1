"""Who votes with care: checks of each voter, votes that are used, and agreement between voters.

    frame = judged(store_path, min_consistency)     votes_frame with a column reason, "" where the vote is used

A check asks a question again with its pictures turned, or shows a pair with an obvious answer. A repetition scores 1
for the same choice, 0 for the opposite one, and 0.5 if one of the two was a tie (for a ranking, the mean over its
pairs). An obvious pair scores 1 for the right choice and 0 for any other. Skips do not count.

    consistency of a voter = the mean score of the voter's checks

The votes of a voter whose consistency is too low are not used, once there are `MIN_CHECKS` checks. Random clicks score
0.5 on average; fewer checks do not separate them from bad luck.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from lpo.votes.store import PATH, SHARES, Store, votes_frame

MIN_CHECKS = 6
CHECKS = """
SELECT v.voter, v.question_id, v.choice, b.choice FROM votes v JOIN questions q USING (question_id)
JOIN votes b ON b.question_id = q.repeats AND b.image_a = v.image_a AND b.image_b = v.image_b
WHERE v.kind = 'repeat' AND v.undone = 0 AND b.undone = 0
UNION ALL
SELECT v.voter, v.question_id, v.choice, CASE WHEN s.best = v.image_a THEN 'right a' ELSE 'right b' END
FROM votes v JOIN questions q USING (question_id) JOIN sets s USING (set_id)
WHERE v.kind = 'obvious' AND v.undone = 0
"""


def voters_frame(path: Path = PATH) -> pd.DataFrame:
    """One row a voter, by name: votes (used kinds, not undone or skipped), checks, consistency (NaN without checks)."""
    votes, checks = votes_frame(path), _checks(path)
    counted = votes[(votes["kind"] == "regular") & ~votes["undone"] & (votes["choice"] != "skip")]
    frame = pd.DataFrame({"votes": counted.groupby("voter").size()}).reindex(sorted(votes["voter"].unique()))
    by = checks.groupby("voter")["score"]
    frame["checks"], frame["consistency"] = by.size(), by.mean()
    return frame.fillna({"votes": 0, "checks": 0}).astype({"votes": int, "checks": int, "consistency": float})


def judged(path: Path = PATH, min_consistency: float = 0.0) -> pd.DataFrame:
    """`votes_frame` and reason: why a vote is kept and not used, "" where it is used."""
    frame, voters = votes_frame(path), voters_frame(path)
    doubted = voters[(voters["checks"] >= MIN_CHECKS) & (voters["consistency"] < min_consistency)]
    reasons = {
        name: f"the voter's consistency is {row.consistency:.2f} over {row.checks} checks, below {min_consistency:g}"
        for name, row in zip(doubted.index, doubted.itertuples(), strict=True)
    }
    frame["reason"] = [reasons.get(voter, "") for voter in frame["voter"]]
    frame.loc[frame["kind"] != "regular", "reason"] = "it is a check"
    frame.loc[frame["choice"] == "skip", "reason"] = "the voter skipped the pair"
    frame.loc[frame["undone"], "reason"] = "the voter took it back"
    return frame


def agreement(frame: pd.DataFrame) -> float:
    """Krippendorff's alpha of the used votes of `judged`, with interval distances between the shares 0, 0.5 and 1.

    NaN if no pair has the votes of two voters, or all votes are the same.
    """
    used = frame[frame["reason"] == ""]
    units = used.groupby(["prompt", "image_a", "image_b", "voter"])["share_a"].last()
    return krippendorff_alpha([group.to_numpy() for _, group in units.groupby(level=[0, 1, 2])])


def krippendorff_alpha(units: list[np.ndarray]) -> float:
    """Krippendorff's alpha with interval distances.

        alpha = 1 - D_o / D_e,   D_o = 1/n sum_u sum_{i != j} (x_ui - x_uj)^2 / (m_u - 1)
        D_e = 1/(n (n - 1)) sum_{i != j} (x_i - x_j)^2   over all n values of units with m_u >= 2 values

    Args:
        units: the values (m_u,) of each unit, one a voter; voters who did not judge it are left out.

    Returns:
        1 for full agreement, 0 for chance; NaN if no unit has two values, or all values are equal.

    Source: Krippendorff, Computing Krippendorff's alpha-reliability, 2011, section D.
    """
    units = [np.asarray(unit, float) for unit in units if len(unit) >= 2]
    if not units:
        return float("nan")
    values = np.concatenate(units)
    expected = _squares(values) / (len(values) - 1)
    observed = sum(_squares(unit) / (len(unit) - 1) for unit in units)
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _squares(values: np.ndarray) -> float:
    """sum_{i != j} (x_i - x_j)^2 = 2 n sum (x - mean)^2."""
    return float(2 * len(values) * ((values - values.mean()) ** 2).sum())


def _checks(path: Path) -> pd.DataFrame:
    """One row a check: voter, question_id, score."""
    rows: list[tuple] = []
    if path.exists():
        with closing(Store(path)) as store, store.reading() as db:
            rows = db.execute(CHECKS).fetchall()
    scored = [
        (voter, question, float(choice == right[-1]) if right.startswith("right ") else _sameness(choice, right))
        for voter, question, choice, right in rows
        if "skip" not in (choice, right)
    ]
    frame = pd.DataFrame(scored, columns=["voter", "question_id", "score"]).astype({"score": float})
    return frame.groupby(["voter", "question_id"], as_index=False)["score"].mean()


def _sameness(choice: str, before: str) -> float:
    return 1 - abs(SHARES[choice] - SHARES[before])
