"""The gate of a promotion: what speaks against a model, from metrics/evaluate.json and the section promote.

A model must beat the base, and the promoted model if there is one (base is base_matched, at the same guidance scale):
    win rate      low > win_rate_low
    margin m      low_m >= -margin_m      low_m is the lower end of the 95% interval of mean(tuned) - mean(opponent)
The second is a test of non-inferiority: not "no difference was seen", but "a loss above the margin is ruled out". The
base stays an opponent, so that many promotions, each within its margin, cannot lead far down.

The win rate is the headline's (lpo/evaluate/metrics.py). A margin counts if its judge is among `evaluate.judges`; other
margins are not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lpo.config import Promote
from lpo.config.results import MARGINS
from lpo.errors import LpoError
from lpo.format import percent, percents, signed, title
from lpo.statistics import Figures

PLACES = {  # a margin -> where its figures are; elsewhere they are in judges, under the margin's name
    "all_correct": ("all_correct",),
    "alignment": ("means", "alignment"),
    "aesthetics": ("means", "aesthetics"),
    "scorer_clip": ("scorers", "clip"),
    "scorer_vqa": ("scorers", "vqa"),
    "scorer_aesthetic": ("scorers", "aesthetic"),
    "geneval": ("geneval", "overall"),
}
WHERE = "metrics/evaluate.json"


def objections(evaluate: Figures, config: Promote, judges: Sequence[str]) -> list[str]:
    """One sentence for each rule that is broken; none means that the model may be promoted.

    Raises:
        LpoError: if `evaluate` lacks figures of a margin that is asked, with all of them.
    """
    asked = margins_of(config, judges)
    against = opponents(evaluate)
    missing = sorted({name for figures in against.values() for name in asked if figures_of(figures, name) is None})
    if missing:
        what = f"promote.margins asks for {', '.join(missing)}, which evaluate has not measured"
        raise LpoError(what, WHERE, "dvc repro evaluate, or take the margin out of params.yaml")
    by = f" by {title(evaluate['judge'])}" if "judge" in evaluate else ""
    found = []
    for opponent, figures in against.items():
        rate = figures["win_rate"]["overall"]
        if rate["low"] <= config.win_rate_low:
            found.append(
                f"it wins {percent(rate['value'])} against {opponent}{by} (95% interval {percents(rate)}), and the "
                f"interval does not lie above {percent(config.win_rate_low)}"
            )
        for name, margin in asked.items():
            row = figures_of(figures, name)
            if row["low"] < -margin:
                found.append(
                    f"{name} changes by {signed(row['difference'], 4)} against {opponent} (95% interval "
                    f"{signed(row['low'], 4)} to {signed(row['high'], 4)}), and a loss of more than {margin:g} is not "
                    "ruled out"
                )
    return found


def margins_of(config: Promote, judges: Sequence[str]) -> dict[str, float]:
    """The margins of the judges that are named, in the order of the judges."""
    names = [name for judge in judges for name in MARGINS[judge]]
    return {name: config.margins[name] for name in names if name in config.margins}


def figures_of(figures: Figures, margin: str) -> Any:
    """{difference, low, high, ...} of a margin in the figures against one opponent, None where there are none."""
    row: Any = figures
    for key in PLACES.get(margin, ("judges", margin)):
        row = row.get(key) if isinstance(row, dict) else None
    return row


def opponents(evaluate: Figures) -> dict[str, Figures]:
    """What the model was compared with, in words -> the figures of that comparison."""
    promoted = evaluate.get("promoted", {})
    others = {f"the promoted model {promoted['name']}": promoted} if "win_rate" in promoted else {}
    return {"the base": evaluate} | others
