from __future__ import annotations

import json
from pathlib import Path

import pytest

from lpo import timings
from lpo.timings import TIMINGS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()


def test_a_stage_is_current_while_its_metrics_are_those_of_the_timed_run() -> None:
    Path("metrics/tune.json").write_text('{"pairs": 1}')
    timings.record("tune", 61.04, "data/base")
    timings.record("encode", 2, "data/base")  # has no metrics
    found = timings.current(["tune", "encode", "reward"])
    assert list(found) == ["tune", "encode"]
    assert found["tune"]["seconds"] == 61.0 and found["tune"]["model"] == "data/base" and found["tune"]["machine"]
    assert len(found["tune"]["finished"]) == len("2026-01-02")
    Path("metrics/tune.json").write_text('{"pairs": 2}')  # of another run, such as a fetched one
    assert list(timings.current(["tune", "encode"])) == ["encode"]
    timings.record("tune", 5, "data/base")
    assert timings.current(["tune"])["tune"]["seconds"] == 5


@pytest.mark.parametrize("text", ["", "[]", "{", '{"tune": 3}'])
def test_a_damaged_file_is_as_none(text: str) -> None:
    TIMINGS.parent.mkdir()
    TIMINGS.write_text(text)
    assert timings.current(["tune"]) == {}
    timings.record("tune", 1, "data/base")
    assert json.loads(TIMINGS.read_text())["tune"]["seconds"] == 1
