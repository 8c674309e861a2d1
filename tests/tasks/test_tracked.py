"""Pairs taken in and models promoted, on their way to a clone that has nothing but the .dvc files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tasks import process, reproduce, tracked
from tasks.reproduce import StageFailed

SHARD, WEIGHTS = "data/collected/train-1.parquet", "models/promoted/pytorch_lora_weights.safetensors"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks as functions, and a remote."""
    monkeypatch.setattr(tracked, "_fetch", tracked._fetch.fn)
    monkeypatch.setattr(tracked, "_add", tracked._add.fn)
    monkeypatch.setattr(tracked, "has_remote", lambda: True)


def clone(folder: Path, repository: Path) -> Path:
    """A repository with the project's rules of what git ignores, nothing in it, and the remote beside it."""
    for name in (".gitignore", "data/collected/.gitignore", "models/.gitignore", "models/promoted/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    remote = ["remote", "add", "--default", "store", str(folder.parent / "remote")]
    for words in (["init", "-q"], ["config", "core.analytics", "false"], remote):
        done = process.run([*reproduce.DVC, *words], folder)
        assert done.code == 0, done.text
    return folder


@pytest.mark.slow
def test_a_copy_gets_what_the_clone_has_and_loses_what_it_has_not(tmp_path: Path, repository: Path) -> None:
    one, other = clone(tmp_path / "one", repository), clone(tmp_path / "other", repository)
    (one / SHARD).write_text("pairs")
    (one / WEIGHTS).write_text("weights")
    (one / "models/lpo-1").mkdir()
    (one / "models/lpo-1/card.md").write_text("a model")
    tracked.keep(one)
    ignored = ["git", "check-ignore", f"{SHARD}.dvc", f"{WEIGHTS}.dvc", "models/lpo-1.dvc"]
    assert subprocess.run(ignored, cwd=one, capture_output=True, text=True).stdout == ""
    for path in one.rglob("*.dvc"):
        if path.is_file():
            shutil.copy(path, other / path.relative_to(one))
    (other / "data/collected/train-2.parquet").write_text("of an earlier run")
    tracked.match(other)
    assert (other / SHARD).read_text() == "pairs" and (other / WEIGHTS).read_text() == "weights"
    assert not (other / "data/collected/train-2.parquet").exists()
    (other / f"{WEIGHTS}.dvc").unlink()  # rolled back to the base
    tracked.match(other)
    assert not (other / WEIGHTS).exists()


@pytest.mark.slow
def test_what_only_a_note_names_is_fetched_or_asked_for(tmp_path: Path, repository: Path) -> None:
    one = clone(tmp_path / "one", repository)
    (one / SHARD).write_text("pairs")
    tracked.keep(one)
    (one / SHARD).unlink()
    tracked.keep(one)
    assert (one / SHARD).read_text() == "pairs"
    (one / SHARD).unlink()
    shutil.rmtree(one / ".dvc/cache")
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(StageFailed):
        tracked.keep(one)


def test_an_empty_place_asks_nothing_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "_dvc", lambda *words: pytest.fail(f"dvc {words}"))
    tracked.keep(tmp_path)
    tracked.match(tmp_path)
