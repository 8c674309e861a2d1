"""Copies of a workspace see data/sources of the original, which neither git nor DVC holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.workspace import ENVIRONMENT

from lpo.paths import share_sources
from tasks import workspace

pytestmark = pytest.mark.slow
READS = "from lpo.paths import share_sources; share_sources(); print(open('data/sources/mine/pairs').read())"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose one stage reads data/sources, as the stage dataset does."""
    folder = tmp_path / "clone"
    (folder / "data/sources/mine").mkdir(parents=True)
    (folder / "data/sources/mine/pairs").write_text("imported pairs")
    (folder / "data/.gitignore").write_text("/sources\n")
    (folder / ".gitignore").write_text("/.prefect/\n.checkpoints\n")
    (folder / "read.py").write_text(READS)
    (folder / "params.yaml").write_text("seed: 0\n")
    (folder / "dvc.yaml").write_text(
        f"stages: {{read: {{cmd: '{sys.executable} read.py > out', params: [seed], outs: [out: {{cache: false}}]}}}}"
    )
    # DVC cannot parse the dates.
    settings = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_DATE")}
    for name, value in (settings | {"DVC_SITE_CACHE_DIR": str(tmp_path / "site")}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workspace, "ROOT", folder)
    commands = (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"], ["git", "commit", "-qm", "files"])
    for words in commands:
        subprocess.run(words, cwd=folder, check=True)
    return folder


def test_an_experiment_in_a_temporary_folder(clone: Path) -> None:
    """Studies run their cells in this way."""
    words = ["dvc", "exp", "run", "--temp", "--name", "other-seed", "-S", "seed=1"]
    done = subprocess.run(words, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = subprocess.run(["git", "show", f"{experiment(clone)}:out"], cwd=clone, capture_output=True, text=True)
    assert shown.stdout == "imported pairs\n"
    assert (clone / "data/sources/mine/pairs").exists(), "it was removed together with the copy"


def experiment(clone: Path) -> str:
    words = ["git", "for-each-ref", "--format=%(refname)", "refs/exps/**/other-seed"]
    return subprocess.run(words, cwd=clone, capture_output=True, text=True, check=True).stdout.strip()


def test_a_run_of_prefect_with_overrides(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = clone / ".prefect/workspaces/run-1"
    workspace.checkout(copy, *workspace.snapshot(clone))
    done = subprocess.run([sys.executable, "read.py"], cwd=copy, capture_output=True, text=True)
    assert done.stdout == "imported pairs\n", done.stderr
    workspace.git(clone, "worktree", "remove", "--force", str(copy))
    assert (clone / "data/sources/mine/pairs").exists(), "it was removed together with the copy"


def test_elsewhere_nothing_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    share_sources()
    assert os.listdir(tmp_path) == []
