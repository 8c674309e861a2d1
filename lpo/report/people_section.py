"""What people said, as a section of the page."""

from __future__ import annotations

from lpo.format import plain
from lpo.report import plots
from lpo.report.html import figure, heading, section, table, text
from lpo.report.people_words import STRENGTHS, STRENGTHS_NOTE, WINS, WINS_NOTE, Json, strengths, who, wins


def people(said: Json | None) -> str:
    """The section of the page; none where nobody voted."""
    if said is None:
        return ""
    bodies = [text(who(said), "lead"), text(WINS_NOTE), table(WINS, wins(said))]
    rated = [(row["opponent"], row["win_rate"]) for row in said["against"].values() if row["win_rate"]]
    if rated:
        alt = "Win rates by votes with 95% intervals beside the line at 50%"
        bodies.append(figure(plots.forest(rated), alt, "Hollow marks: the interval includes 50%."))
    if said["strengths"]["models"]:
        bodies += [heading("Strengths"), text(STRENGTHS_NOTE, "soft"), table(STRENGTHS, strengths(said))]
    if said["not_used"]:
        reasons = [[reason, plain(count)] for reason, count in said["not_used"].items()]
        bodies += [heading("Votes that are not used"), table(["reason", "votes"], reasons)]
    return section("people", "What people said", *bodies)
