"""The summary, and notifications that never fail a run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.workspace import write_params

from lpo.timings.gpus import Use
from tasks import publish
from tasks.dispatch import Outcome
from tasks.publish import notify, summary


def test_the_summary_by_hand(tmp_path: Path) -> None:
    write_params(tmp_path, {"report": {"gpu_hour_price": 2.0}})
    (tmp_path / "metrics").mkdir()
    rate = {"value": 0.7, "low": 0.65, "high": 0.75}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps({"win_rate": {"overall": rate}}))
    use = Use(gpus=4, seconds=720.0, joules=3.6e6)
    outcomes = {"reward": Outcome("ran", 12.34, uses=(use,)), "tune": Outcome("failed", message="no pairs")}
    waits = ["hub team/model: ConnectError: no route", "folder share: no space left"]
    decision = {"promoted": False, "reason": "not surely better", "name": "m7", "pending": waits}
    assert summary(outcomes, tmp_path, decision).splitlines()[:22] == [
        "| tuned model against its base | win rate | 95 % interval |",
        "| --- | --- | --- |",
        "| overall | 70.0% | 65.0% to 75.0% |",
        "",
        "| stage | result | minutes | GPU-hours |",
        "| --- | --- | --- | --- |",
        "| reward | ran | 12.3 | 0.80 |",
        "| tune | failed |  |  |",
        "",
        "On GPUs: 0.80 GPU-hours, 1.00 kWh, cost 1.60",
        "",
        "**tune failed.** no pairs",
        "",
        "**m7 was not promoted:** not surely better",
        "",
        "**Not published yet:** hub team/model: ConnectError: no route",
        "",
        "**Not published yet:** folder share: no space left",
        "",
        "The next night and `lpo models publish` try again.",
        "",
        f"This run has overrides. Its files are in `{tmp_path}`; those of the clone did not change.",
    ]


class Slack:
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def notify(self, body: str, subject: str) -> None:
        self.told.append((subject, body))


class Hook:
    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []

    def call(self, payload: dict[str, str]) -> None:
        self.told.append(payload)


def block(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    monkeypatch.setattr(publish.Variable, "get", lambda name: "kind/name" if name == "lpo_notify" else None)
    monkeypatch.setattr(publish.Block, "load", lambda name: found if name == "kind/name" else None)


def test_both_kinds_of_blocks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    slack, hook = Slack(), Hook()
    block(monkeypatch, slack)
    notify("run: failed", "why")
    block(monkeypatch, hook)
    notify("run: failed", "why")
    assert slack.told == [("run: failed", "why")]
    assert hook.told == [{"subject": "run: failed", "text": "run: failed\nwhy"}]


def test_a_message_that_cannot_be_sent_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block(monkeypatch, object())
    logging.getLogger("prefect").propagate = True
    with caplog.at_level(logging.WARNING):
        notify("run: failed", "why")
    assert "the notification was not sent" in caplog.text
