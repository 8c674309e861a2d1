"""GPUs are held by one stage at a time, on a machine whose GPUs are names."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lpo.timings.gpus import visible
from tasks import process
from tasks.gpus import Gpus, held

NAMES = ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]
HOLDS = """
import pathlib, sys
from tasks.gpus import held
with held(["GPU-a", "GPU-b"], 2, folder=pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_no_gpu_is_held_twice_and_what_is_too_much_waits(tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def all_of_them() -> None:
        with held(NAMES, 4, waits.set, tmp_path) as gpus:
            order.append(f"all: {len(gpus.names)}")

    with held(NAMES, 1, folder=tmp_path) as one, held(NAMES, 2, folder=tmp_path) as two:
        assert one.environment == {"CUDA_VISIBLE_DEVICES": "GPU-a"}
        assert two.environment == {"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-c"}
        thread = threading.Thread(target=all_of_them)
        thread.start()
        assert waits.wait(10)
        with held(NAMES, 1, folder=tmp_path) as last:  # the one that waits holds nothing
            assert last.names == ("GPU-d",)
        order.append("freed")
    thread.join(10)
    assert order == ["freed", "all: 4"]


def test_a_machine_without_gpus_holds_none(tmp_path: Path) -> None:
    with held([], 1, folder=tmp_path) as gpus:
        assert gpus == Gpus((), ()) and gpus.environment == {}


def test_a_killed_process_frees_its_gpus_but_not_before_its_command_has_ended(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with held(NAMES, 2, folder=tmp_path) as others:
            assert others.names == ("GPU-c", "GPU-d")
        os.kill(holder.pid, signal.SIGKILL)
    with held(NAMES, 2, folder=tmp_path) as mine:
        assert mine.names == ("GPU-a", "GPU-b")
        command = threading.Thread(
            target=process.run, args=(["sh", "-c", "touch begun; sleep 1; touch ended"], tmp_path),
            kwargs={"keep": mine.files},
        )  # fmt: skip
        command.start()
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
    with held(NAMES[:2], 2, folder=tmp_path):  # this process let go of them; the command had them still
        assert (tmp_path / "ended").exists()
    command.join()


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, ["GPU-a", "GPU-b"]),
        ("1", ["GPU-b"]),
        ("GPU-b,0", ["GPU-b", "GPU-a"]),
        ("0,-1,1", ["GPU-a"]),
        ("", []),
    ],
)
def test_visible_gpus_have_the_names_of_the_driver(
    wanted: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0, GPU-a\\n1, GPU-b\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if wanted is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert visible() == found
