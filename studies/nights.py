"""Nights in small: simulated annotators vote on the model of each night, and the next night learns from their votes.

    python studies/nights.py                              what `make nights` runs: three nights
    python studies/nights.py --nights 2 --votes 40        fewer of both
    python studies/nights.py --settings FILE --folder F   other parameters, another folder

A night consists of the commands that people use: `lpo ingest` makes pairs of the votes that there are, `dvc repro`
trains and evaluates, `lpo vote` opens the page on loopback, `lpo votes simulate` votes on it, `lpo votes figures` says
what the votes say, and `lpo promote` asks the gate, which asks the votes. All of it happens in a clone of the last
commit, with the parameters of studies/nights.yaml; nothing here changes. If it is killed, the same command resumes with
the night that it was in.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "pytorch_lora_weights.safetensors"
HEAD = (
    "night",
    "pairs from votes",
    "pairs the reward is right on",
    "alignment",
    "looks",
    "all correct",
    "votes for it against the base",
    "votes",
    "gate",
    "minutes",
)
Row = dict[str, Any]


class Clone:
    """A clone of the last commit, in which commands run with its own code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
        self.environment = os.environ | paths

    def run(self, *words: str) -> str:
        """Run a command and return what it printed. Ends this program with its code if it fails."""
        print(f"$ {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE)
        if done.returncode:
            print(done.stdout, file=sys.stderr)
            sys.exit(done.returncode)
        return done.stdout

    def answer(self, *words: str) -> Row:
        """The JSON object on the last line that a command prints."""
        found: Row = json.loads(self.run(*words).splitlines()[-1])
        return found

    def read(self, name: str) -> Row:
        found: Row = json.loads((self.folder / name).read_text())
        return found

    def vote(self, against: str, voters: int, votes: int) -> None:
        """Open the page, and let the team vote on it."""
        words = ("lpo", "vote", "--port", "0", "--against", against)
        print(f"$ {' '.join(words)} &", file=sys.stderr, flush=True)
        page = subprocess.Popen(words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE)
        try:
            assert page.stdout is not None
            if not (address := page.stdout.readline().strip()):
                sys.exit(page.wait() or 1)  # it has said why
            self.run("lpo", "votes", "simulate", address, "--voters", str(voters), "--votes", str(votes))
        finally:
            page.send_signal(signal.SIGINT)
            page.wait()


def prepare(folder: Path, settings: Path) -> Clone:
    """The clone, made unless it is there."""
    clone = Clone(folder)
    if not (folder / "params.yaml").exists():
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(folder)], check=True)
        clone.run("lpo", "preset", str(settings.resolve()))
    return clone


def night(clone: Clone, number: int, voters: int, votes: int) -> Row:
    """One night; what it comes to."""
    begun = time.monotonic()
    ingested = clone.answer("lpo", "ingest")
    clone.run("dvc", "repro")
    clone.vote("base", voters, votes)
    tuned, promoted = (clone.folder / name / WEIGHTS for name in ("data/tuned", "models/promoted"))
    if promoted.exists() and promoted.read_bytes() != tuned.read_bytes():
        clone.vote("promoted", voters, votes)
    clone.run("lpo", "votes", "figures")
    return {
        "night": number, "new_pairs": ingested["new_pairs"], "decision": clone.answer("lpo", "promote"),
        "evaluate": clone.read("metrics/evaluate.json"), "people": clone.read("metrics/people.json"),
        "reward": clone.read("metrics/reward.json")["accuracy"]["mean"], "minutes": (time.monotonic() - begun) / 60,
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The nights as a Markdown table."""
    lines, pairs = [HEAD, ("---",) * len(HEAD)], 0
    for row in rows:
        pairs += row["new_pairs"]
        means, right, decision = row["evaluate"]["means"], row["evaluate"]["all_correct"], row["decision"]
        rate = row["people"]["against"]["base"]["win_rate"]
        said = f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})" if rate else "no votes"
        gate = "promoted" if decision["promoted"] else "waits" if decision["waits"] else "refused"
        lines.append(
            (
                str(row["night"]), str(pairs), f"{row['reward']:.1%}", _change(means["alignment"]),
                _change(means["aesthetics"]), _change(right), said, str(rate["votes"] if rate else 0), gate,
                f"{row['minutes']:.0f}",
            )
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _change(row: Mapping[str, float]) -> str:
    """Of the tuned model, and what it gains over the base."""
    return f"{row['tuned']:.3f} ({row['difference']:+.3f})".replace("-", "−")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nights", type=int, default=3)
    parser.add_argument("--voters", type=int, default=8, help="simulated annotators")
    parser.add_argument("--votes", type=int, default=100, help="of each annotator, a night and opponent")
    parser.add_argument("--settings", type=Path, default=ROOT / "studies/nights.yaml", help="merged into params.yaml")
    parser.add_argument("--folder", type=Path, default=ROOT / ".nights", help="where it happens")
    asked = parser.parse_args(words)
    folder = asked.folder.resolve()
    clone, record = prepare(folder, asked.settings), folder / "nights.json"
    rows: list[Row] = json.loads(record.read_text()) if record.exists() else []
    for number in range(len(rows) + 1, asked.nights + 1):
        rows.append(night(clone, number, asked.voters, asked.votes))
        partial = record.with_suffix(".partial")
        partial.write_text(json.dumps(rows))
        partial.replace(record)
        print(table(rows[-1:]), file=sys.stderr, flush=True)
    print(table(rows))
    print(f"\nAll figures: {record}. Remove {folder} to begin again.")


if __name__ == "__main__":
    main()
