"""people: data/votes.sqlite -> metrics/people.json, which report and card show. The gate reads the votes itself."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import typer

from lpo import paths
from lpo.config import Params
from lpo.files import write_json
from lpo.format import many, percent, percents, plain, signed
from lpo.registry.ledger import PROMOTED, WEIGHTS, name_of
from lpo.report.people_words import of_whom
from lpo.statistics import Figures
from lpo.votes.store import PATH

FIGURES = paths.metrics("people")
BETTER = "better"  # as lpo/votes/statistics_sequence.py says it, which loads scipy
EVERY = 30.0  # seconds


def run(params: Params, as_json: bool = False) -> None:
    """Write metrics/people.json and print what it says. Raises LpoError if data/tuned has no model."""
    said = what_people_said(params)
    write_json(FIGURES, said)
    if as_json:
        typer.echo(json.dumps(said))
        return
    typer.echo("\n".join(lines(said)))
    typer.echo(f"wrote {FIGURES}; `dvc repro report` shows it")


def what_people_said(params: Params, path: Path = PATH, base: str = "") -> Figures:
    """The figures of `lpo.votes.statistics.people`, of data/tuned against its base and the promoted model.

    Besides, `simulated`: how many of the voters are programs; `not_used`: votes by the reason that speaks against them;
    agreement: Krippendorff's alpha, None where no pair has two voters.

    base: its name, where it is known already: a large base takes a while to hash.
    """
    from lpo.commands.vote_pairs import base_name
    from lpo.votes.consistency import agreement, judged
    from lpo.votes.names import simulated
    from lpo.votes.statistics import counted, people

    votes = judged(path, params.vote.min_consistency)
    tuned, opponents = name_of(paths.TUNED), {"base": base or base_name(params)}
    if (PROMOTED / WEIGHTS).exists() and name_of(PROMOTED) != tuned:
        opponents["promoted"] = name_of(PROMOTED)
    alpha = agreement(votes)
    not_used = votes.loc[votes["reason"] != "", "reason"].value_counts().sort_index()
    return people(votes, tuned, opponents) | {
        "simulated": int(counted(votes)["voter"].isin(simulated()).groupby(counted(votes)["voter"]).any().sum()),
        "agreement": None if math.isnan(alpha) else alpha,
        "not_used": {str(reason): int(count) for reason, count in not_used.items()},
    }


class Enough:
    """Whether votes on held-out prompts are enough for the gate, looked at once in `EVERY` seconds at most.

    They are if the bounds that hold at every look show that the tuned model is worse than vote.against, or alike, or
    better, and then the gate has the votes and the interval that it asks for. Other pictures than those of base and
    promoted are not compared, so they never are.
    """

    def __init__(self, params: Params, path: Path = PATH) -> None:
        self.params, self.path, self.known, self._next, self._base = params, path, False, 0.0, ""

    def __call__(self) -> bool:
        if not self.known and time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY  # first, so that one thread of many looks
            self.known = self._look()
            self._next = time.monotonic() + EVERY
        return self.known

    def _look(self) -> bool:
        against, gate = self.params.vote.against, self.params.promote.people
        if against not in ("base", "promoted") or self.params.evaluate.tuned != str(paths.TUNED):
            return False
        said = what_people_said(self.params, self.path, self._base)
        self._base = said["against"]["base"]["opponent"]
        row = said["against"].get(against, {})
        rate = row.get("win_rate")
        if rate is None or row["stopping"]["verdict"] is None:
            return False
        return row["stopping"]["verdict"] != BETTER or (rate["votes"] >= gate.votes and rate["low"] > gate.win_rate_low)


def lines(said: Figures) -> list[str]:
    """The figures as text."""
    out = [f"counted: {of_whom(said)}"]
    if said["simulated"]:
        out.append(f"  simulated annotators among the voters, which are no people: {plain(said['simulated'])}")
    for key, row in said["against"].items():
        name = key if key == "base" else f"the promoted model {row['opponent']}"
        rate, stopping = row["win_rate"], row["stopping"]
        if rate is None:
            out.append(f"against {name}: no votes on held-out prompts")
            continue
        out += [
            f"against {name}: {percent(rate['value'])} of {many(rate['votes'], 'vote')} on held-out prompts "
            f"({percents(rate)} over voters and prompts)",
            f"  {percents(stopping)} however often one looks: {enough(stopping)}",
        ]
    for name, row in said["strengths"]["models"].items():
        interval = f"{signed(row['low'], 2)} to {signed(row['high'], 2)}"
        out.append(f"strength {name}: {signed(row['strength'], 2)} ({interval}), {many(row['votes'], 'vote')}")
    if said["agreement"] is not None:
        out.append(f"agreement between voters (Krippendorff's alpha): {said['agreement']:.2f}")
    return out


def enough(stopping: Figures) -> str:
    """Whether more votes are needed, in words."""
    if stopping["verdict"]:
        return f"enough votes, the tuned model is {stopping['verdict']}"
    if stopping["more_votes"] is None:
        return "not enough votes"
    return f"about {many(stopping['more_votes'], 'more vote')}"
