import io
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from support.defaults import default_params

from lpo.config import load_params
from lpo.files import write_json, write_parquet, write_text
from lpo.report.pictures import choose, contact_sheet
from lpo.stages.report import SHEET, locked, revision, run

ROOT = Path(__file__).parents[2]
COUNTS = {"input": 10, "kept": 4, "dropped": 6, "quarantined": 0}
FILTERED = COUNTS | {"dropped_by": {"clip": 6}, "by_split": {"train": COUNTS}}


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A git repository with code, parameters, a lock file and the metrics of one stage."""
    monkeypatch.chdir(tmp_path)
    write_text("params.yaml", default_params())
    write_text("lpo/code.py", "x = 1\n")
    stages = {
        "report": {"outs": [{"path": "data/report", "md5": "0" * 32}]},
        "dataset": {
            "cmd": "lpo dataset",
            "deps": [{"path": "lpo/code.py", "md5": "1" * 32, "size": 6}, {"path": "data/base", "md5": "2" * 32}],
            "outs": [{"path": "data/pairs", "md5": "3" * 32 + ".dir", "size": 10, "nfiles": 2}],
        },
    }
    write_text("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))
    write_json(
        "metrics/filter.json", FILTERED
    )
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "lpo", "params.yaml")
    git(tmp_path, "commit", "-qm", "code")
    return tmp_path


def page() -> str:
    run(load_params("params.yaml"))
    return Path("data/report/index.html").read_text()


def test_writes_page_and_card_and_names_what_is_missing(project):
    text = page()
    assert "Missing: metrics/evaluate.json." in text and "Missing: metrics/filter.json." not in text
    assert "3" * 32 + ".dir" in text and "1" * 32 in text
    assert Path("data/report/MODEL_CARD.md").read_text().startswith("---\nbase_model: data/base\n")
    assert sorted(path.name for path in Path("data/report").iterdir()) == ["MODEL_CARD.md", "index.html"]


def test_bytes_change_with_code_but_not_with_other_commits(project):
    first = page()
    write_text("notes.md", "results\n")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "results")
    assert page() == first
    write_text("lpo/code.py", "x = 2\n")
    assert "with changes that are not committed" in page()
    git(project, "commit", "-qam", "more code")
    assert page() != first and "with changes" not in page()


def test_own_hash_of_the_last_run_is_left_out(project):
    assert "0" * 32 not in page()
    outs, code = locked(Path("dvc.lock"))
    assert [item.path for item in outs] == ["data/pairs"]
    assert [item.path for item in code] == ["lpo/code.py"]


def test_tracking_changes_nothing(project):
    first = page()
    settings = Path("params.yaml").read_text()
    assert "project: lpo" in settings
    write_text("params.yaml", settings.replace("project: lpo", "project: other"))
    git(project, "commit", "-qam", "tracking", "--amend", "--no-edit")
    assert re.sub("[0-9a-f]{40}", "", page()) == re.sub("[0-9a-f]{40}", "", first)


def test_without_git_or_commits(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision(tmp_path) == "no git repository"


def test_pictures_come_from_the_results(project):
    scores = dict.fromkeys(("alignment", "aesthetic", "utility", "clip", "vqa", "aesthetic_score", "lrm"), 1.0)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    row = {"prompt": "a <b>cat</b>", "category": "single", "seed": 0, "png": buffer.getvalue(), "all_correct": True}
    row |= scores
    frame = pd.DataFrame([row | {"model": model} for model in ("base", "base_matched", "tuned")])
    write_parquet("data/evaluation/results.parquet", frame)
    assert "a &lt;b&gt;cat&lt;/b&gt;" in page()
    chosen = choose(frame, SHEET, load_params().seed)
    assert Path("data/report/before_after.png").read_bytes() == contact_sheet(frame, chosen["random"])
    assert not Path("data/report/changed.png").exists(), "both images are right"
    frame.loc[frame["model"] == "tuned", "all_correct"] = False
    write_parquet("data/evaluation/results.parquet", frame)
    page()
    assert Path("data/report/changed.png").read_bytes() == contact_sheet(frame, choose(frame, SHEET, 42)["changed"])
