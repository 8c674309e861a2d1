"""Every command checks the output path that the user named before it does anything else."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.errors import LpoError

FILES = {  # the words before the output path; the path's suffix
    "generate": (["generate", "a cat", "--out"], ".png"),
    "score": (["score", "cat.png", "a cat", "--out"], ".png"),
    "export a LoRA": (["export"], ".safetensors"),
    "data scores": (["data", "scores", "table.parquet", "--out"], ".parquet"),
}
FOLDERS = {
    "export": ["export"],
    "data import": ["data", "import", "table.parquet", "--images", "photos", "--out"],
    "study": ["study", "quick", "--out"],
}


@pytest.fixture(autouse=True)
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with photographs of the user's; no command gets as far as its work."""
    (project / "photos").mkdir()
    (project / "photos" / "1.png").write_text("a photograph")
    (project / "cat.png").write_text("a cat")
    pd.DataFrame({"image_uid": ["a"], "aesthetic": [1.0], "clip": [1.0], "vqa": [1.0]}).to_parquet("table.parquet")
    for name in ("commands.generate", "commands.inspect", "commands.export", "commands.imports", "study.collect"):
        monkeypatch.setitem(sys.modules, f"lpo.{name}", None)  # an import of it raises ImportError
    return project


def refused(*words: str) -> LpoError:
    error = CliRunner().invoke(cli.app, list(words)).exception
    assert isinstance(error, LpoError), error
    return error


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_users_is_refused(here: Path, name: str) -> None:
    words, suffix = FILES[name]
    mine = here / f"mine{suffix}"
    mine.write_text("mine")
    assert "did not write" in refused(*words, mine.name).what
    for place, said in (("photos", "folder"), (f"lpo/new{suffix}", "project"), (f"photos/1.png/new{suffix}", "used")):
        error = refused(*words, place)
        assert said in error.what or "suffix" in error.what or "entry" in error.what
    assert mine.read_text() == "mine" and (here / "photos" / "1.png").read_text() == "a photograph"


@pytest.mark.parametrize("name", FILES)
def test_force_and_a_new_name_get_as_far_as_the_work(here: Path, name: str) -> None:
    words, suffix = FILES[name]
    (here / f"mine{suffix}").write_text("mine")
    for more in ([f"mine{suffix}", "--force"], [f"new{suffix}"], [f"folder/new{suffix}"], ["/dev/null"]):
        if name == "export a LoRA" and more == ["/dev/null"]:
            continue  # without the suffix it means the merged pipeline, which is a folder
        assert isinstance(CliRunner().invoke(cli.app, [*words, *more]).exception, ImportError)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_the_users_is_refused(here: Path, name: str) -> None:
    words = FOLDERS[name]
    assert "1 entry" in refused(*words, "photos").what
    assert "entries" in refused(*words, ".").what
    assert "no folder" in refused(*words, "cat.png").what
    for place in ("data/pairs", ".git/new", "models", "lpo"):
        assert "project" in refused(*words, place).what
    assert "project" in refused(*words, "data").what
    assert (here / "photos" / "1.png").read_text() == "a photograph"
    (here / "empty").mkdir()
    for place in ("new", "empty", "data/sources/mine"):
        assert isinstance(CliRunner().invoke(cli.app, [*words, place]).exception, ImportError)


def test_a_preset_follows_a_link_and_keeps_the_files_mode(here: Path) -> None:
    (here / "params.yaml").rename(here / "real.yaml")
    (here / "real.yaml").chmod(0o640)
    (here / "params.yaml").symlink_to("real.yaml")
    assert CliRunner().invoke(cli.app, ["preset", "sdxl"]).exit_code == 0
    assert (here / "params.yaml").is_symlink() and "family: sdxl" in (here / "real.yaml").read_text()
    assert stat.S_IMODE((here / "real.yaml").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "4294967296"), ("--seed", "-1"), ("--guidance-scale", "nan"), ("--guidance-scale", "inf"),
     ("--guidance-scale", "0"), ("--steps", "0")],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_at_once(here: Path, option: str, value: str) -> None:
    result = CliRunner().invoke(cli.app, ["generate", "a cat", option, value])
    assert result.exit_code == 2 and option in result.output


def test_a_parameter_file_that_cannot_be_read_is_told(here: Path) -> None:
    (here / "latin.yaml").write_bytes("seed: 1 # Länge".encode("latin-1"))
    (here / "loop.yaml").symlink_to("loop.yaml")
    for name in (".", "latin.yaml", "loop.yaml", "nowhere.yaml", "/dev/null"):
        assert "file" in refused("preset", "sdxl", "--params", name).what
