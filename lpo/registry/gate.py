"""The gate of a promotion: what speaks against a model, from metrics/evaluate.json and the section promote.

A model must beat the base, and the promoted model where there is one (matching base at the same guidance scale):
    win rate      low > win_rate_low
    metric m      low_m >= -margin_m      low_m is the lower end of the 95% interval of mean(tuned) - mean(opponent)
The second is a test of non-inferiority: not "no difference was seen", but "a loss above the margin is ruled out". It is
asked against the base too, so that many promotions, each within its margin, cannot lead far down.
"""

from __future__ import annotations

from dataclasses import asdict

from lpo.config import Promote
from lpo.format import percent, percents, signed
from lpo.statistics import Figures

METRICS = {  # a margin -> where its figures are
    "all_correct": ("all_correct",),
    "alignment": ("means", "alignment"),
    "aesthetics": ("means", "aesthetics"),
    "scorer_clip": ("scorers", "clip"),
    "scorer_vqa": ("scorers", "vqa"),
    "scorer_aesthetic": ("scorers", "aesthetic"),
}


def objections(evaluate: Figures, config: Promote) -> list[str]:
    """One sentence for each rule that is broken; none means that the model may be promoted."""
    found = []
    for opponent, figures in opponents(evaluate).items():
        rate = figures["win_rate"]["overall"]
        if rate["low"] <= config.win_rate_low:
            found.append(
                f"it wins {percent(rate['value'])} against {opponent} (95% interval {percents(rate)}), and the "
                f"interval does not lie above {percent(config.win_rate_low)}"
            )
        for name, margin in asdict(config.margins).items():
            row = figures
            for key in METRICS[name]:
                row = row[key]
            if row["low"] < -margin:
                found.append(
                    f"{name} changes by {signed(row['difference'], 4)} against {opponent} (95% interval "
                    f"{signed(row['low'], 4)} to {signed(row['high'], 4)}), and a loss of more than {margin:g} is not "
                    "ruled out"
                )
    return found


def opponents(evaluate: Figures) -> dict[str, Figures]:
    """What the model was compared with, in words -> the figures of that comparison."""
    promoted = evaluate.get("promoted", {})
    others = {f"the promoted model {promoted['name']}": promoted} if "win_rate" in promoted else {}
    return {"the base": evaluate} | others
