"""Mistakes that end a run before anything starts. No server is needed."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows import pipeline
from flows.pipeline import Stages, check, check_inputs
from lpo.errors import LpoError
from tasks.graph import read_graph


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The server has all it needs; the stages it was asked about are noted."""
    asked: list[list[str]] = []
    monkeypatch.setattr(pipeline, "check_workers", lambda stages: asked.append([stage.name for stage in stages]))
    monkeypatch.setattr(pipeline, "check_inputs", lambda graph, selected: None)
    return asked


def test_the_selected_stages_are_asked_for_on_the_server(server: list[list[str]]) -> None:
    _, selected = check(Stages.model_validate({"from": "reward", "until": "tune"}), [], False, False)
    assert selected == ["reward", "tune"] and server == [["reward", "tune"]]


@pytest.mark.parametrize(
    ("stages", "changes", "promote", "words"),
    [
        ({"from": "lrn"}, [], False, "no stage 'lrn'"),
        ({}, ["tune.bta=3"], False, "unknown key"),
        ({}, ["tune.beta=3"], True, "cannot be combined with overrides"),
        ({"until": "tune"}, [], True, "promote needs the stage evaluate"),
    ],
)
def test_refusals(stages: dict[str, Any], changes: list[str], promote: bool, words: str) -> None:
    with pytest.raises(LpoError, match=words):
        check(Stages.model_validate(stages), changes, promote, False)


def test_a_misspelt_bound_is_refused() -> None:
    with pytest.raises(ValidationError):
        Stages.model_validate({"form": "reward"})


def test_outputs_of_stages_that_are_left_out_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "has_remote", lambda: False)
    (tmp_path / "dvc.yaml").write_text(
        "stages: {a: {cmd: x, outs: [one]}, b: {cmd: x, deps: [one], outs: [two]}, c: {cmd: x, deps: [two], outs: [d]}}"
    )
    for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(words, cwd=tmp_path, check=True)
    graph = read_graph(tmp_path)
    with pytest.raises(LpoError, match=r"missing: one \(stage a\), two \(stage b\)"):
        check_inputs(graph, ["c"], tmp_path)
    (tmp_path / "one").touch()
    (tmp_path / "two").touch()
    check_inputs(graph, ["c"], tmp_path)
