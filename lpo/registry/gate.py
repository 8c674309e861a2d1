"""The gate of a promotion: what speaks against a model, from metrics/evaluate.json and the section promote.

A model must beat the base, and the promoted model if there is one (base is base_matched, at the same guidance scale):
    win rate      low > win_rate_low
    margin m      low_m >= -margin_m      low_m is the lower end of the 95% interval of mean(tuned) - mean(opponent)
The second is a test of non-inferiority: not "no difference was seen", but "a loss above the margin is ruled out". The
base stays an opponent, so that many promotions, each within its margin, cannot lead far down.

The win rate is the headline's (lpo/evaluate/metrics.py). A margin counts if its judge is among `evaluate.judges`; other
margins are not asked.

With promote.people.votes above 0, people must agree, against each opponent on prompts that no training saw:
    votes      n >= people.votes, or the gate waits
    win rate   min(low, stopping.low) > people.win_rate_low
low counts voters and prompts as levels, for one look. stopping.low holds at all looks at once, as the gate is asked
again and again while votes come in (lpo/votes/statistics.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lpo.config import People, Promote
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


def people_objections(people: Figures, config: People) -> list[str]:
    """One sentence for each opponent that people do not prefer the model to.

    people: `lpo.votes.statistics.people`. An opponent with too few votes is no objection while the model can still win
    against it (`waits_for`).
    """
    found = []
    for name, row in _opponents_of_people(people):
        rate, stopping = row["win_rate"], row["stopping"]
        lost = stopping["high"] <= config.win_rate_low  # no further vote is needed
        if rate and (lost or (rate["votes"] >= config.votes and _low(row) <= config.win_rate_low)):
            found.append(
                f"people chose it over {name} in {percent(rate['value'])} of {rate['votes']} votes (95% interval "
                f"{percents(rate)}; {percents(stopping)} however often one looks), which does not lie above "
                f"{percent(config.win_rate_low)}"
            )
    return found


def waits_for(people: Figures, config: People) -> str:
    """Which votes the gate waits for, as a sentence; "" if there are enough."""
    counts = [(name, row["win_rate"]["votes"] if row["win_rate"] else 0) for name, row in _opponents_of_people(people)]
    lacking = [f"{votes} of {config.votes} against {name}" for name, votes in counts if votes < config.votes]
    return f"it waits for votes on held-out prompts: {', '.join(lacking)}" if lacking else ""


def _opponents_of_people(people: Figures) -> list[tuple[str, Figures]]:
    named = {"base": "the base", "promoted": "the promoted model"}
    return [
        (named[key] if key == "base" else f"{named[key]} {row['opponent']}", row)
        for key, row in people["against"].items()
    ]


def _low(row: Figures) -> float:
    return float(min(row["win_rate"]["low"], row["stopping"]["low"]))


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
