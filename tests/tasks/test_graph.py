"""The stages and their order come out of dvc.yaml alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpo.errors import LpoError
from tasks.graph import after, before, read_graph, select

DIAMOND = """
stages:
  report: {cmd: x, deps: [b.txt, c, metrics], outs: [report]}
  b: {cmd: x, deps: [data/a/part], outs: [b.txt], meta: {gpu: true}}
  c: {cmd: x, deps: [data/a], outs: [{c: {persist: true}}]}
  a: {cmd: x, outs: [data/a], metrics: [{metrics/a.json: {cache: false}}], frozen: true}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DIAMOND)
    return tmp_path


def test_a_stage_waits_for_what_makes_what_it_reads(folder: Path) -> None:
    """Inside an output (b), the whole (c), a folder that holds one (report reads metrics)."""
    graph = read_graph(folder)
    assert {name: set(stage.upstream) for name, stage in graph.items()} == {
        "a": set(), "b": {"a"}, "c": {"a"}, "report": {"a", "b", "c"},
    }  # fmt: skip
    assert list(graph)[0] == "a" and list(graph)[-1] == "report"


def test_gpu_and_frozen_are_read(folder: Path) -> None:
    graph = read_graph(folder)
    assert {name: stage.queue for name, stage in graph.items()} == {"a": "cpu", "b": "gpu", "c": "cpu", "report": "cpu"}
    assert [name for name, stage in graph.items() if stage.frozen] == ["a"]


def test_from_and_until(folder: Path) -> None:
    graph = read_graph(folder)
    assert set(select(graph, None, None)) == {"a", "b", "c", "report"}
    assert set(select(graph, "b", None)) == {"b", "report"}
    assert set(select(graph, None, "b")) == {"a", "b"}
    assert select(graph, "b", "b") == ["b"]
    assert before(graph, ["c"]) == {"a", "c"} and after(graph, ["c"]) == {"c", "report"}


@pytest.mark.parametrize(
    ("first", "until", "words"),
    [("raport", None, "did you mean report?"), (None, "z", "use one of"), ("report", "a", "does not come after")],
)
def test_what_is_not_there_is_refused(folder: Path, first: str | None, until: str | None, words: str) -> None:
    with pytest.raises(LpoError, match=words.replace("?", r"\?")):
        select(read_graph(folder), first, until)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: {a: {foreach: [1], do: {cmd: x}}}", "foreach"),
        ("stages: {a: {cmd: x, deps: [b], outs: [a]}, b: {cmd: x, deps: [a], outs: [b]}}", "wait for each other: a, b"),
        ("{}", "no stages"),
    ],
)
def test_files_that_are_not_supported_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(LpoError, match=words):
        read_graph(tmp_path)


def test_the_stages_of_the_repository(repository: Path) -> None:
    graph = read_graph(repository)
    assert {name for name, stage in graph.items() if stage.gpu} == {"reward", "tune", "evaluate"}
    assert set(graph["tune"].upstream) == {"base", "dataset", "filter", "encode", "reward"}


def test_templates_are_filled_from_the_parameters(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text('stages: {a: {cmd: x, outs: [r]}, b: {cmd: x, deps: ["${tune.reward}"]}}')
    (tmp_path / "params.yaml").write_text("tune: {reward: r}")
    assert read_graph(tmp_path)["b"].upstream == ("a",)
    (tmp_path / "params.yaml").write_text("tune: {}")
    with pytest.raises(LpoError, match="tune.reward"):
        read_graph(tmp_path)
