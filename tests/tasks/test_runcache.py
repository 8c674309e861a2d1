"""One stage's result goes to a remote and into a clone whose dvc.lock does not record it: a folder, and S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks import process, reproduce
from tasks.reproduce import Transient

pytestmark = pytest.mark.slow
STAGE = """
stages:
  double:
    cmd: sh -c 'mkdir -p out && cat in in > out/text && echo "{\\"n\\":2}" > metrics.json && echo ran >> {log}'
    deps: [in]
    outs: [out]
    metrics: [{metrics.json: {cache: false}}]
"""
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a", "AWS_DEFAULT_REGION": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def project(folder: Path, *remote: str) -> Path:
    """A repository with one stage and a default remote."""
    folder.mkdir()
    (folder / "in").write_text("text\n")
    (folder / "dvc.yaml").write_text(STAGE.replace("{log}", str(folder.parent / "log")))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for words in (["init", "-q"], ["config", "core.analytics", "false"], *map(str.split, remote)):
        done = process.run([*reproduce.DVC, *words], folder)
        assert done.code == 0, done.text
    return folder


def repro(folder: Path) -> str:
    return reproduce.repro(folder, "double", False, lambda line: None, lambda percent, line: None)


def through(tmp_path: Path, *remote: str) -> tuple[Path, Path]:
    """Run and push in one clone, fetch in another, and return both. The command runs once."""
    one, other = project(tmp_path / "one", *remote), project(tmp_path / "other", *remote)
    assert repro(one) == "ran" and reproduce.status(one) == set()
    assert reproduce.restore(other, "double", remote=False) == ""
    assert reproduce.restore(other, "double", remote=True) == "", "nothing was pushed yet"
    reproduce.push(one, "double")
    assert reproduce.restore(other, "double", remote=True) == "fetched"
    assert (other / "out/text").read_text() == "text\ntext\n" and (other / "metrics.json").exists()
    assert (other / "dvc.lock").read_bytes() == (one / "dvc.lock").read_bytes()
    assert reproduce.restore(other, "double", remote=False) == "unchanged"
    assert (tmp_path / "log").read_text() == "ran\n"
    return one, other


def test_through_a_folder(tmp_path: Path) -> None:
    through(tmp_path, f"remote add --default store {tmp_path / 'remote'}")


@pytest.mark.parametrize("remote", [False, True])
def test_a_result_of_other_inputs_is_not_restored(tmp_path: Path, remote: bool) -> None:
    one = project(tmp_path / "one", f"remote add --default store {tmp_path / 'remote'}")
    assert repro(one) == "ran"
    reproduce.push(one, "double")
    (one / "in").write_text("other\n")
    assert reproduce.restore(one, "double", remote) == ""
    assert repro(one) == "ran" and (one / "out/text").read_text() == "other\nother\n"
    (one / "in").write_text("text\n")
    assert reproduce.restore(one, "double", remote) == "fetched" and (one / "out/text").read_text() == "text\ntext\n"


def test_an_entry_of_other_inputs_is_not_fetched(tmp_path: Path) -> None:
    remote = f"remote add --default store {tmp_path / 'remote'}"
    one, other = project(tmp_path / "one", remote), project(tmp_path / "other", remote)
    repro(one)
    reproduce.push(one, "double")
    (other / "in").write_text("changed\n")
    assert reproduce.restore(other, "double", remote=True) == ""
    assert not (other / "out").exists()


def test_a_committed_lock_is_enough(tmp_path: Path) -> None:
    """A clone with dvc.lock and the committed metrics fetches what they name, without any run cache entry."""
    remote = f"remote add --default store {tmp_path / 'remote'}"
    one, other = project(tmp_path / "one", remote), project(tmp_path / "other", remote)
    repro(one)
    assert process.run([*reproduce.DVC, "push"], one).code == 0
    for name in ("dvc.lock", "metrics.json"):
        (other / name).write_bytes((one / name).read_bytes())
    assert reproduce.restore(other, "double", remote=True) == "fetched"
    assert (other / "out/text").exists() and (tmp_path / "log").read_text() == "ran\n"


def test_an_unreachable_remote_is_reported_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    address = f"http://127.0.0.1:{free_port()}"
    folder = project(
        tmp_path / "one", "remote add --default store s3://bucket", f"remote modify store endpointurl {address}"
    )
    assert repro(folder) == "ran"
    with pytest.raises(Transient, match="the remote cannot be reached. Local results are kept"):
        reproduce.push(folder, "double")
    assert (folder / "out/text").exists() and reproduce.status(folder) == set()


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a moto server on loopback that has a bucket."""
    pytest.importorskip("moto.server")
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path / "moto.log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log, env=os.environ)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                httpx.put(f"{address}/bucket").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def test_through_s3(tmp_path: Path, s3: str) -> None:
    """A result, then parts of a share, which are there until the stage sends its result."""
    remote = ["remote add --default store s3://bucket/lpo", f"remote modify store endpointurl {s3}"]
    one, other = through(tmp_path, *remote)
    parts = ".checkpoints/double/key"
    for name in ("00000.txt", "00001.txt", "judge/00002.txt", ".00004.txt.partial"):
        (one / parts / name).parent.mkdir(parents=True, exist_ok=True)
        (one / parts / name).write_text(name)
    (other / parts).mkdir(parents=True)
    (other / parts / "00000.txt").write_text("mine")
    reproduce.push_parts(one, "double", parts, "1/2")
    reproduce.pull_parts(other, "double")
    found = {path.relative_to(other / parts).as_posix() for path in other.glob(f"{parts}/**/*.txt*")}
    assert found == {"00000.txt", "judge/00002.txt"} and (other / parts / "00000.txt").read_text() == "mine"
    assert "parts/double" in httpx.get(f"{s3}/bucket").text
    reproduce.push(one, "double")
    assert "parts/double" not in httpx.get(f"{s3}/bucket").text
