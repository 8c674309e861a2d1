"""Overrides, copies of a workspace, and locks that end with the process that holds them."""

from __future__ import annotations

import base64
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import yaml

from lpo.errors import ConfigError, LpoError
from tasks import workspace
from tasks.workspace import Place, checkout, locked, overridden, place_here, place_of, run_workspace, snapshot

PARAMS = Path(__file__).resolve().parents[2] / "params.yaml"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with the project's parameters, made the clone that the worker belongs to."""
    folder = tmp_path / "clone"
    folder.mkdir()
    (folder / "params.yaml").write_text(PARAMS.read_text())
    (folder / ".gitignore").write_text(".prefect/\n.checkpoints\n/ignored\n")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/.gitignore").write_text("/config.local\n/cache\n")
    (folder / ".dvc/config").write_text("[core]\n    remote = store\n['remote \"store\"']\n    url = ../../remote\n")
    (folder / "code.py").write_text("one\n")
    monkeypatch.setattr(workspace, "ROOT", folder)
    monkeypatch.setattr(workspace, "STATE", folder / ".prefect")
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "a")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.c")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "files"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


def test_overrides_are_read_as_yaml_and_change_nothing_else() -> None:
    text = PARAMS.read_text()
    changes = ["tune.beta=1e-1", "tune.threshold.low=0.25", "tune.timestep_range=[0, 500]", "reward.max_grad_norm=null"]
    before, after = yaml.safe_load(text), yaml.safe_load(overridden(text, changes))
    before["tune"]["beta"] = 0.1
    before["tune"]["threshold"]["low"] = 0.25
    before["tune"]["timestep_range"] = [0, 500]
    before["reward"]["max_grad_norm"] = None
    assert after == before


def test_no_override_leaves_the_text_as_it_is() -> None:
    text = PARAMS.read_text()
    assert overridden(text, []) == text
    beta = yaml.safe_load(text)["tune"]["beta"]
    assert overridden(text, [f"tune.beta={beta}"]) == text


def test_wrong_overrides_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        overridden(PARAMS.read_text(), ["tune.bta=1", "reward.steps=-1", "nonsense.x=1"])
    assert len(caught.value.mistakes) == 3
    with pytest.raises(LpoError, match="is not an override"):
        overridden(PARAMS.read_text(), ["tune.beta"])


def test_a_run_without_overrides_works_in_the_clone(clone: Path) -> None:
    assert run_workspace([]) == clone


def test_a_run_with_overrides_leaves_the_clone_as_it_is(clone: Path) -> None:
    (clone / "code.py").write_text("two\n")
    (clone / "new.py").write_text("new\n")
    (clone / "ignored").write_text("x")
    before = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout
    folder = run_workspace(["tune.beta=7"])
    assert folder.is_relative_to(clone / ".prefect/workspaces")
    assert yaml.safe_load((folder / "params.yaml").read_text())["tune"]["beta"] == 7
    assert (folder / "code.py").read_text() == "two\n" and (folder / "new.py").read_text() == "new\n"
    assert not (folder / "ignored").exists()
    assert (clone / "params.yaml").read_text() == PARAMS.read_text()
    assert subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout == before
    assert run_workspace(["tune.beta=7"]) == folder
    config = (folder / ".dvc/config.local").read_text()
    assert str(clone.parent / "remote") in config and str(clone / ".dvc/cache") in config
    assert (folder / ".checkpoints").resolve() == clone / ".checkpoints"


def test_old_workspaces_are_removed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "KEPT", 2)
    folders = []
    for beta in (7, 8, 9):
        folders.append(run_workspace([f"tune.beta={beta}"]))
        time.sleep(0.02)
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_a_copy_of_a_workspace_is_that_workspace(clone: Path, tmp_path: Path) -> None:
    (clone / "code.py").write_text("two\n")
    folder = run_workspace(["tune.beta=7"])
    copy = clone / ".prefect/workspaces/copy"
    checkout(copy, *snapshot(folder))
    assert snapshot(copy) == snapshot(folder)
    (copy / "left.py").write_text("of an earlier stage")
    checkout(copy, *snapshot(folder))
    assert not (copy / "left.py").exists()


def test_a_change_of_the_same_size_in_the_same_second_is_seen(clone: Path) -> None:
    """Git finds such a change because the index is not newer than the file; a copy of the index must not be either."""
    (clone / "code.py").write_text("one\n")
    subprocess.run(["git", "add", "code.py"], cwd=clone, check=True)
    (clone / "code.py").write_text("two\n")
    time.sleep(1.1)
    assert b"+two" in snapshot(clone)[1]


def test_a_worker_of_the_same_clone_works_in_place(clone: Path) -> None:
    with place_here(place_of(clone), "reward") as (folder, carried):
        assert (folder, carried) == (clone, False)


def test_a_worker_of_another_clone_works_in_a_copy(clone: Path) -> None:
    commit, patch = snapshot(clone)
    there = Place("elsewhere:/clone", "/clone", commit, base64.b64encode(zlib.compress(patch)).decode())
    with place_here(there, "reward") as (folder, carried):
        assert carried and folder == clone / ".prefect/workspaces/stage-reward"
        assert (folder / "code.py").read_text() == "one\n"


def test_without_a_remote_another_clone_is_refused(clone: Path) -> None:
    (clone / ".dvc/config").write_text("")
    assert place_of(clone).commit == ""
    place = place_here(Place("x:/y", "/y", "", ""), "reward")
    with pytest.raises(LpoError, match="they share no DVC remote"), place:
        pass


def test_a_commit_that_nobody_has_is_refused(clone: Path) -> None:
    with pytest.raises(LpoError, match="does not have the commit"):
        checkout(clone / ".prefect/workspaces/copy", "0" * 40, b"")


def test_too_large_a_patch_is_refused(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "LARGEST_PATCH", 10)
    (clone / "code.py").write_text("two\n")
    with pytest.raises(LpoError, match="too large to send"):
        place_of(clone)


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import pathlib, sys, time\nfrom tasks.workspace import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'first', print):\n    print('held', flush=True)\n    time.sleep(100)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=root, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        told: list[str] = []

        def waiting(name: str) -> None:
            told.append(name)
            holder.kill()

        with locked(path, "second", waiting):
            assert told == ["first"]
            assert path.read_text() == "second"
