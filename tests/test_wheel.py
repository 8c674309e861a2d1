"""A wheel installs lpo and nothing else at the top level; an editable install also finds flows and tasks."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path, repository: Path) -> Path:
    """The files that are packaged, since a build writes into its folder."""
    for name in ("lpo", "flows", "tasks"):
        shutil.copytree(repository / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in repository.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path / "clone")
    return tmp_path / "clone"


def build(clone: Path, kind: str) -> zipfile.ZipFile:
    program = f"import setuptools.build_meta as backend; backend.build_{kind}({str(clone.parent)!r})"
    done = subprocess.run([sys.executable, "-c", program], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = clone.parent.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_a_wheel_installs_lpo_alone(clone: Path) -> None:
    files = build(clone, "wheel").namelist()
    names = {name.partition("/")[0] for name in files}
    assert {name for name in names if not name.endswith(".dist-info")} == {"lpo"}
    assert {"lpo/presets/sd15.yaml", "lpo/emoji/atlas.png", "lpo/emoji/NOTICE", "lpo/web/static/vote.js"} <= set(files)
    assert any("lpo/presets/models/THUDM--ImageReward/" in name for name in files)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)


def test_an_editable_install_puts_the_clone_on_the_path(clone: Path) -> None:
    """Workers import flows and tasks from the clone that they belong to."""
    wheel = build(clone, "editable")
    (name,) = [name for name in wheel.namelist() if name.endswith(".pth")]
    assert wheel.read(name).decode().split() == [str(clone)]
