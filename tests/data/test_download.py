"""Downloads from a hub on this machine, in processes of their own: the hub's client reads its settings once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.loopback_hub import COMMIT, serve

from lpo.data.download import open_store
from lpo.errors import LpoError

NAME, REPOSITORY = "data/train-00000-of-00001-aa.parquet", "somebody/pairs"
PROGRAM = f"""
from lpo.data.download import open_store
from lpo.errors import LpoError
try:
    store = open_store("here", "{REPOSITORY}", "main")
    print(store.names("train-*.parquet"), store.commit)
    print(store.get("{NAME}").stat().st_size)
except LpoError as error:
    print(error)
"""


def start(tmp_path: Path, url: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_killed_download_goes_on_and_only_right_bytes_become_the_file(tmp_path: Path) -> None:
    remote = tmp_path / "remote" / NAME
    remote.parent.mkdir(parents=True)
    data = random.Random(0).randbytes(24 * 10**6)
    remote.write_bytes(data)
    here = tmp_path / "here" / NAME
    partial = here.with_name(f".{here.name}.partial")
    with serve(REPOSITORY, tmp_path / "remote") as hub:
        hub.stall_after = 23 * 10**6
        process = start(tmp_path, hub.url)
        assert hub.stalled.wait(60)
        for _ in range(600):
            if partial.exists() and partial.stat().st_size:
                break
            time.sleep(0.1)
        process.kill()
        process.wait()
        came = partial.stat().st_size
        assert 0 < came < len(data) and not here.exists()

        hub.stall_after = None
        out, _ = start(tmp_path, hub.url).communicate(timeout=120)
        assert out.split() == [f"['{NAME}']", COMMIT, str(len(data))]
        assert here.read_bytes() == data and not partial.exists()
        assert hub.requests[-1][1] == f"bytes={came}-"  # what had come was not asked for again
        asked = len(hub.requests)
        assert start(tmp_path, hub.url).communicate(timeout=120)[0] == out
        assert len(hub.requests) == asked  # known and checked: the hub is not asked at all

        here.write_bytes(b"x" + data[1:])  # the size is right, the bytes are not: loaded again
        assert start(tmp_path, hub.url).communicate(timeout=120)[0] == out
        assert here.read_bytes() == data

        here.unlink()
        remote.write_bytes(b"x" + data[1:])  # the hub serves other bytes than it listed
        out, _ = start(tmp_path, hub.url).communicate(timeout=120)
        assert "not what the hub listed: its SHA-256 is" in out and "run it again" in out
        assert not here.exists()


def test_without_a_hub_or_a_folder_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LpoError, match="HF_HUB_OFFLINE=0"):  # tests run offline
        open_store(tmp_path / "pickapic", REPOSITORY, "main")
    out, _ = start(tmp_path, "http://127.0.0.1:9").communicate(timeout=120)  # nobody listens there
    assert "the hub did not list somebody/pairs" in out
    with pytest.raises(LpoError, match="there is no such folder"):
        open_store(tmp_path / "absent", None, "main")


def test_a_folder_of_ones_own_is_read_as_it_is_and_never_emptied(tmp_path: Path) -> None:
    file = tmp_path / "data" / "test-00000.parquet"
    file.parent.mkdir()
    file.write_bytes(b"1")
    store = open_store(tmp_path, None, "main")
    (name,) = store.names("test-*.parquet")
    store.forget(name)
    assert store.get(name) == file and file.exists()
    with pytest.raises(LpoError, match="no file train-"):
        store.names("train-*.parquet")
    with pytest.raises(LpoError, match="leaves its folder"):
        store.get("../x.parquet")
