"""What the nightly asks of the `lpo` command, with an `lpo` of the test on the PATH."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import pipeline
from lpo.errors import LpoError
from tasks import nightly, tracked


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes `lpo` print this and end with that code; its words are noted in `words`."""

    def make(text: str, code: int = 0) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        program = tmp_path / "bin/lpo"
        (tmp_path / "text").write_text(text)
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\ncat {tmp_path}/text\nexit {code}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        return tmp_path

    return make


def test_the_last_line_is_the_answer(answer: Any) -> None:
    folder = answer('reading the inbox\n{"new_pairs": 3, "quarantined": 1}\n')
    with disable_run_logger():
        assert nightly.ingest.fn(folder) == {"new_pairs": 3, "quarantined": 1}
    assert (folder / "words").read_text() == "ingest\n"


def test_a_failure_keeps_the_message_of_the_command(answer: Any) -> None:
    folder = answer("no gate in params.yaml\n  fix: add it\n", 2)
    with disable_run_logger(), pytest.raises(LpoError, match="fix: add it"):
        nightly.promote.fn(folder)


@pytest.mark.parametrize(
    ("promoted", "waits", "moved", "subject"),
    [
        (True, False, True, "m7: promoted"), (False, False, True, "m7: refused"), (True, False, False, "m7: promoted"),
        (False, False, False, None), (False, True, True, "m7: waits for votes"),
    ],
)  # fmt: skip
def test_a_decision_is_told_if_it_is_news_and_a_promotion_is_kept(
    answer: Any, monkeypatch: pytest.MonkeyPatch, promoted: bool, waits: bool, moved: bool, subject: str | None
) -> None:
    decision = {"promoted": promoted, "waits": waits, "reason": "by 2 points", "name": "m7"}
    folder = answer(json.dumps(decision) + "\n")
    told: list[tuple[str, str]] = []
    kept: list[Path] = []
    monkeypatch.setattr(pipeline, "notify", lambda *words: told.append(words))
    monkeypatch.setattr(tracked, "keep", kept.append)
    monkeypatch.setattr(nightly, "promote", nightly.promote.fn)
    with disable_run_logger():
        assert pipeline.decide(folder, moved) == decision
    assert told == ([(subject, "by 2 points")] if subject else [])
    assert kept == ([folder] if promoted else [])
    assert (folder / "words").read_text() == "promote\n"


def test_the_real_command_answers_as_the_nightly_reads_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_folder = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    with disable_run_logger():
        assert nightly.ingest.fn(project) == {"new_pairs": 0, "quarantined": 0, "duplicates": 0, "files": []}
        with pytest.raises(LpoError, match="lpo promote failed .*no LoRA here"):
            nightly.promote.fn(project)


def test_votes_decide_before_the_stages_replace_their_model(
    answer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nightly, "promote", nightly.promote.fn)
    monkeypatch.setattr(pipeline, "notify", lambda *words: pytest.fail("a gate that waits is no news"))
    with disable_run_logger():
        answer(json.dumps({"promoted": False, "waits": True, "reason": "9 of 50", "name": "m7"}) + "\n")
        pipeline.decide_by_votes()
        answer("no LoRA here", 2)
        pipeline.decide_by_votes()  # the first night has no model yet
