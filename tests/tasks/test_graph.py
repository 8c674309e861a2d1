"""The stages and their order, as DVC reports them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lpo.errors import LpoError
from tasks import process, reproduce
from tasks.graph import Stage, after, before, read_graph, select
from tasks.reproduce import StageFailed

DIAMOND = """
stages:
  report: {cmd: x, deps: [b.txt, c, metrics], outs: [report]}
  b: {cmd: x, deps: [data/a/part], outs: [b.txt], meta: {gpu: true}}
  c: {cmd: x, deps: [data/a], outs: [{c: {persist: true}}]}
  a: {cmd: x, outs: [data/a], metrics: [{metrics/a.json: {cache: false}}], frozen: true}
"""
GRAPH = {  # of DIAMOND
    "a": Stage("a", gpu=False, frozen=True, upstream=()),
    "b": Stage("b", gpu=True, frozen=False, upstream=("a",)),
    "c": Stage("c", gpu=False, frozen=False, upstream=("a",)),
    "report": Stage("report", gpu=False, frozen=False, upstream=("a", "b", "c")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DVC project without stages."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    done = process.run([*reproduce.DVC, "init", "-q"], tmp_path)
    assert done.code == 0, done.text
    return tmp_path


def test_a_stage_waits_for_the_stages_that_make_what_it_reads(folder: Path) -> None:
    """A file inside an output (b), a whole output (c), a folder that contains one (report reads metrics)."""
    (folder / "dvc.yaml").write_text(DIAMOND)
    graph = read_graph(folder)
    assert {name: (set(s.upstream), s.queue, s.frozen) for name, s in graph.items()} == {
        name: (set(s.upstream), s.queue, s.frozen) for name, s in GRAPH.items()
    }
    assert list(graph)[0] == "a" and list(graph)[-1] == "report"


def test_from_and_until() -> None:
    assert set(select(GRAPH, None, None)) == {"a", "b", "c", "report"}
    assert set(select(GRAPH, "b", None)) == {"b", "report"}
    assert set(select(GRAPH, None, "b")) == {"a", "b"}
    assert select(GRAPH, "b", "b") == ["b"]
    assert before(GRAPH, ["c"]) == {"a", "c"} and after(GRAPH, ["c"]) == {"c", "report"}


@pytest.mark.parametrize(
    ("first", "until", "words"),
    [("raport", None, "did you mean report?"), (None, "z", "use one of"), ("report", "a", "does not come after")],
)
def test_unknown_or_unordered_bounds_are_refused(first: str | None, until: str | None, words: str) -> None:
    with pytest.raises(LpoError, match=words.replace("?", r"\?")):
        select(GRAPH, first, until)


def test_what_dvc_refuses_is_refused_in_its_words(folder: Path) -> None:
    with pytest.raises(LpoError, match="no dvc.yaml"):
        read_graph(folder)
    (folder / "dvc.yaml").write_text("stages: {a: {cmd: x, deps: [b], outs: [a]}, b: {cmd: x, deps: [a], outs: [b]}}")
    with pytest.raises(StageFailed, match="both a dependency and an output in stages: (a, b|b, a)"):
        read_graph(folder)


def test_templates_and_loops_are_dvcs_to_fill(folder: Path) -> None:
    (folder / "params.yaml").write_text("tune: {reward: r}")
    (folder / "dvc.yaml").write_text(
        """
stages:
  a: {cmd: x, outs: [r]}
  b:
    foreach: [1, 2]
    do: {cmd: "x ${item}", deps: ["${tune.reward}"], outs: ["b${item}"], meta: {gpu: true}}
"""
    )
    graph = read_graph(folder)
    assert {name: (s.upstream, s.gpu) for name, s in graph.items()} == {
        "a": ((), False), "b@1": (("a",), True), "b@2": (("a",), True),
    }  # fmt: skip


def test_the_stages_of_the_repository(folder: Path, repository: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(repository / name, folder)
    graph = read_graph(folder)
    assert {name for name, s in graph.items() if s.gpu} == {"score", "encode", "reward", "tune", "evaluate"}
    assert {name for name, s in graph.items() if s.shared} == {"score", "encode", "evaluate"}
    assert {name for name, stage in graph.items() if stage.frozen} == {"base"}
    assert set(graph["tune"].upstream) == {"base", "dataset", "filter", "encode", "reward"}
