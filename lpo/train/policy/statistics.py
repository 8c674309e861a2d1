"""What the steps of a rollout saw, for the history and for trackers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepStatistics:
    """What one step of a rollout saw: prompts, pairs kept, mean gap of the scores, threshold of the measure."""

    t: int
    seen: int
    kept: int
    gap: float
    threshold: float


def by_timestep(seen: list[StepStatistics], learned: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """What a rollout saw at every timestep, beside what was learned there."""
    return [asdict(s) | learned.get(s.t, {}) for s in seen]


def tracked_by_timestep(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The rows of `by_timestep`, such as tune/by_timestep/kept/t0501, as a tracker takes them."""
    found: dict[str, float] = {}
    names = ("kept", "gap", "clipped", "implicit_accuracy", "drift")  # the last three where a pair was learned from
    for row in rows:
        figures = row | {"kept": row["kept"] / row["seen"]}
        found |= {f"tune/by_timestep/{name}/t{row['t']:04d}": float(figures[name]) for name in names if name in figures}
    return found
