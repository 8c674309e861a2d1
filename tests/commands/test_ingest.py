"""The inbox on files: everything ends up in one place, hostile files harm nothing, and a kill loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from support.new_pairs import mirrored, pairs

from lpo.commands import ingest
from lpo.config import load_params
from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.files import alone, folder_hash

INBOX = Path("data/inbox")


def few(n: int, start: int = 0) -> pd.DataFrame:
    """Pairs whose captions the embedded world's tokenizer can read to the end."""
    return pairs(n, start).assign(caption=["a " + "b" * (i % 7 + 1) for i in range(start, start + n)])


def prepare(folder: Path) -> None:
    """What a pipeline has made before: pairs, prompts and a tokenizer; and an empty inbox."""
    make_tokenizer().save_pretrained(folder / "data/base/tokenizer")
    for name in ("pairs", "collected", "inbox"):
        (folder / "data" / name).mkdir(parents=True)
    for number, split in enumerate(("train", "validation", "test")):
        frame = pairs(3, 100 + 3 * number).assign(caption=[f"{split} {i}" for i in range(3)])
        frame = frame.assign(image_0_uid=[f"{split}{i}a" for i in range(3)])
        frame.to_parquet(folder / f"data/pairs/{split}-00000.parquet", index=False)
    prompts = pd.DataFrame({"prompt": ["go", "stay"], "split": ["test", "train"], "category": "x"})
    prompts.to_parquet(folder / "data/prompts.parquet", index=False)


@pytest.fixture
def lab(project: Path) -> Path:
    prepare(project)
    return project


@pytest.fixture
def take(lab: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(source: str = "") -> dict[str, Any]:
        if source:
            text = Path("params.yaml").read_text()
            Path("params.yaml").write_text(text.replace("source: data/inbox", f"source: {source}"))
        capsys.readouterr()
        ingest.run(load_params())
        (line,) = capsys.readouterr().out.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    return call


def counts(found: dict[str, Any]) -> tuple[int, int, int]:
    return found["new_pairs"], found["quarantined"], found["duplicates"]


def collected() -> pd.DataFrame:
    shards = sorted(Path("data/collected").glob("*.parquet"))
    return pd.concat([pd.read_parquet(shard) for shard in shards]).sort_values("ranking_id", ignore_index=True)


def test_an_empty_inbox_is_no_work(take: Any) -> None:
    assert take() == {"new_pairs": 0, "quarantined": 0, "duplicates": 0, "files": []}
    INBOX.rmdir()
    assert take()["files"] == []


def test_new_bad_and_known_rows_each_go_their_way(take: Any) -> None:
    frame = few(6)
    frame.loc[1, "label_0"] = 2.0
    frame.loc[2, "caption"] = "TEST  1"
    frame.loc[3, "caption"] = "Go"  # a prompt of the evaluation that no pair has
    known = pd.read_parquet("data/pairs/train-00000.parquet")
    frame.to_parquet(INBOX / "new.parquet", index=False)
    known.to_parquet(INBOX / "known.parquet", index=False)
    found = take()
    assert counts(found) == (3, 3, 3)
    assert {file["name"]: counts(file) for file in found["files"]} == {"new.parquet": (3, 3, 0),
                                                                       "known.parquet": (0, 0, 3)}  # fmt: skip
    assert sorted(collected()["caption"]) == sorted(frame.loc[[0, 4, 5], "caption"])
    bad = pd.concat(pd.read_parquet(file) for file in Path("data/quarantine").glob("*.parquet"))
    assert dict(zip(bad["row"], bad["reason"], strict=True)) == {
        1: "label_0 is not in 0..1; the labels do not sum to 1",
        2: "the caption is held out: test",
        3: "the caption is held out: test",
    }
    assert list(INBOX.glob("*.parquet")) == [] and len(list((INBOX / "taken").iterdir())) == 2


def test_what_came_before_is_a_duplicate_whoever_brings_it(take: Any) -> None:
    few(4).to_parquet(INBOX / "a.parquet", index=False)
    assert counts(take()) == (4, 0, 0)
    before = folder_hash("data/collected")
    few(4).to_parquet(INBOX / "a.parquet", index=False)  # the same bytes
    assert counts(take()) == (0, 0, 4)
    mirrored(few(4)).assign(ranking_id=70).to_parquet(INBOX / "b.parquet", index=False)
    assert counts(take()) == (0, 0, 4)
    assert folder_hash("data/collected") == before
    few(6).to_parquet(INBOX / "c.parquet", index=False)
    assert counts(take()) == (2, 0, 4)
    assert len(collected()) == 6


@pytest.mark.slow
def test_the_order_of_arrival_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a": few(4), "b": few(4, 2), "c": few(2, 20)}  # a and b share two pairs
    nights = {"together": ["abc"], "renamed": ["cba"], "one": ["a", "b", "c"], "other": ["c", "b", "a"]}
    parameters = Path("params.yaml").resolve().read_text()
    rows, folders = {}, {}
    for name, order in nights.items():
        prepare(tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        Path("params.yaml").write_text(parameters)
        for night in order:
            for place, file in enumerate(night):
                files[file].to_parquet(INBOX / f"{place}.parquet", index=False)
            ingest.run(load_params())
        rows[name], folders[name] = collected(), folder_hash("data/collected")
    assert len(rows["one"]) == 8
    for name in nights:
        pd.testing.assert_frame_equal(rows[name], rows["one"])
    assert folders["together"] == folders["renamed"]  # of one night, to the byte


def hostile(how: str, frame: pd.DataFrame) -> str:
    """Put a file of no use into the inbox; its name."""
    name = {"test split": "test-00000.parquet", "odd name": "x..%2F..\n;rm -rf *.parquet"}.get(how, "x.parquet")
    path = INBOX / name
    if how == "missing column":
        frame = frame.drop(columns="jpg_0")
    if how == "words for labels":
        frame = frame.astype({"label_0": str})
    frame.to_parquet(path, index=False)
    if how in ("truncated", "odd name"):
        path.write_bytes(path.read_bytes()[:-30])
    if how == "no parquet":
        path.write_bytes(b"<html>")
    if how == "empty":
        path.write_bytes(b"")
    if how == "damaged inside":
        data = bytearray(path.read_bytes())
        data[4 : len(data) // 2] = os.urandom(len(data) // 2 - 4)
        path.write_bytes(data)
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    ["truncated", "no parquet", "empty", "damaged inside", "missing column", "words for labels", "test split",
     "odd name"],
)  # fmt: skip
def test_a_file_of_no_use_is_refused_with_its_reason_and_stops_no_other(take: Any, how: str) -> None:
    name = hostile(how, few(3))
    few(2, 30).to_parquet(INBOX / "good.parquet", index=False)
    found = take()
    files = {file["name"]: file for file in found["files"]}
    assert counts(files["good.parquet"]) == (2, 0, 0)
    assert files[name]["reason"] and files[name]["quarantined"] >= 1 and files[name]["new_pairs"] == 0
    (reason,) = Path("data/quarantine").glob("*.json")
    assert json.loads(reason.read_text())["file"] == name
    (kept,) = (INBOX / "refused").iterdir()
    assert kept.name.startswith(reason.stem) and "/" not in kept.name and "\n" not in kept.name
    assert len(collected()) == 2
    assert take()["files"] == []


def test_names_lead_nowhere_and_what_is_no_file_stays(take: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.parquet"
    few(2).to_parquet(secret, index=False)
    (INBOX / "link.parquet").symlink_to(secret)
    (INBOX / "folder.parquet").mkdir()
    few(2, 40).to_parquet(INBOX / ".half.parquet", index=False)
    few(3).to_parquet(INBOX / "..a..parquet", index=False)  # hidden, as what is still being written
    few(3).to_parquet(INBOX / "~root*[a].parquet", index=False)
    found = take()
    assert counts(found) == (3, 0, 0)
    assert {file["name"]: file["reason"] for file in found["files"]} == {
        "~root*[a].parquet": "",
        "folder.parquet": "it is not a plain file; it was left where it is",
        "link.parquet": "it is not a plain file; it was left where it is",
    }
    assert secret.exists() and (INBOX / "link.parquet").is_symlink() and (INBOX / ".half.parquet").exists()
    (taken,) = (INBOX / "taken").iterdir()
    assert taken.name.endswith("-_root__a_.parquet")


def test_a_table_of_another_kind_is_told_and_stays(take: Any) -> None:
    few(2).drop(columns=["jpg_0", "jpg_1"]).to_csv(INBOX / "votes.csv", index=False)
    os.mkfifo(INBOX / "pipe.parquet")  # reading it would wait for ever
    found = take()
    assert counts(found) == (0, 0, 0) and (INBOX / "votes.csv").exists()
    reasons = {file["name"]: file["reason"] for file in found["files"]}
    assert "lpo data import" in reasons["votes.csv"] and "not a plain file" in reasons["pipe.parquet"]


def test_an_inbox_that_is_a_prefix_of_an_object_store(take: Any) -> None:
    store = fsspec.filesystem("memory")
    for name, frame in (("a*.parquet", few(3)), ("ab.parquet", few(2, 10)), ("notes.txt", None)):
        with store.open(f"/bucket/in/{name}", "wb") as file:
            file.write(frame.to_parquet(index=False) if frame is not None else b"text")
    assert counts(take("memory://bucket/in")) == (5, 0, 0)
    left = sorted(path.rsplit("/", 1)[-1].split("-", 1)[-1] for path in store.find("/bucket/in"))
    assert left == ["a_.parquet", "ab.parquet", "notes.txt"]
    assert len(store.ls("/bucket/in/taken")) == 2
    assert [file["name"] for file in take()["files"]] == ["notes.txt"]
    store.rm("/bucket", recursive=True)


def test_without_held_out_captions_nothing_is_taken(take: Any) -> None:
    few(2).to_parquet(INBOX / "a.parquet", index=False)
    Path("data/prompts.parquet").unlink()
    with pytest.raises(LpoError, match="a leak could not be seen"):
        take()
    assert (INBOX / "a.parquet").exists() and not list(Path("data/collected").iterdir())


def test_two_at_once_are_told(take: Any) -> None:
    with alone(ingest.LOCK, "held by the test"), pytest.raises(LpoError, match="is at work"):
        take()


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["write_quarantine", "write_shard", "move", "after move"])
def test_cut_off_anywhere_nothing_is_lost_and_nothing_doubled(
    take: Any, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    frame = few(4)
    frame.loc[0, "label_0"] = 2.0
    frame.to_parquet(INBOX / "a.parquet", index=False)

    def killed(*args: Any) -> None:
        if cut == "after move":
            real(*args)
        raise KeyboardInterrupt

    real = ingest.Inbox.move
    with monkeypatch.context() as patch:
        target: Any = ingest.Inbox if "move" in cut else sys.modules["lpo.data.inbox"]
        patch.setattr(target, cut.removeprefix("after "), killed)
        with pytest.raises(KeyboardInterrupt):
            take()
    found = take()
    assert counts(found) == ((0, 0, 0) if cut == "after move" else (3, 1, 0))
    assert len(collected()) == 3
    (bad,) = Path("data/quarantine").glob("*.parquet")
    assert pd.read_parquet(bad)["row"].tolist() == [0]
    assert len(list((INBOX / "taken").iterdir())) == 1 and not list(INBOX.glob("*.parquet"))
    assert not ingest.WORK.exists()


@pytest.mark.slow
def test_sigkill_after_the_first_of_many_files(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = 40
    for number in range(files):
        few(3, 3 * number).to_parquet(INBOX / f"{number}.parquet", index=False)
    command = [sys.executable, "-m", "lpo.cli", "ingest"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(Path("data/collected").iterdir()):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(list((INBOX / "taken").glob("*"))) if (INBOX / "taken").exists() else 0
    assert len(list(INBOX.glob("*.parquet"))) == files - done > 0
    ingest.run(load_params())
    found = json.loads(capsys.readouterr().out)
    assert found["new_pairs"] == 3 * files - 3 * done
    frame = collected()
    assert len(frame) == 3 * files and frame["ranking_id"].is_unique
    assert len(list((INBOX / "taken").iterdir())) == files
