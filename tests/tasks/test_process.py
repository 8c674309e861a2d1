"""Commands run in a group that is watched, stopped whole, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks import process

PARENT = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from tasks import process
process.run(["sh", "-c", "sleep 100 & echo $! > child; echo $$ > parent; wait"], pathlib.Path("."))
"""
ROOT = Path(__file__).resolve().parents[2]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def read_pid(path: Path) -> int:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.02)


def test_lines_and_bars_arrive_apart(tmp_path: Path) -> None:
    text = "one\\n 20%|##   | 1/5 [0s]\\r 40%|##   | 2/5 [0s]\\r100%|#####| 5/5 [1s]\\ntwo"
    lines: list[str] = []
    bars: list[float] = []
    done = process.run(["printf", text.replace("%", "%%")], tmp_path, lines.append, lambda p, _: bars.append(p))
    assert done.code == 0
    assert bars == [20, 40, 100]
    assert lines == done.lines == ["one", "100%|#####| 5/5 [1s]", "two"]


def test_output_arrives_while_the_command_runs(tmp_path: Path) -> None:
    seen: list[float] = []
    process.run(["sh", "-c", "echo a; sleep 0.6; echo b"], tmp_path, lambda line: seen.append(time.monotonic()))
    assert seen[1] - seen[0] > 0.4


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("true", 0)])
def test_the_code_is_told(tmp_path: Path, end: str, code: int) -> None:
    assert process.run(["sh", "-c", end], tmp_path).code == code


def test_a_command_that_dies_leaves_nothing(tmp_path: Path) -> None:
    done = process.run(["sh", "-c", "sleep 100 & echo $! > child; kill -9 $$"], tmp_path)
    assert done.code == 137
    wait_until_gone(read_pid(tmp_path / "child"))


def test_an_exception_stops_the_group_even_if_it_ignores_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "GRACE", 0.5)

    def raise_(line: str) -> None:
        raise KeyboardInterrupt

    command = "trap '' INT; sleep 100 & echo $! > child; echo $$ > parent; echo line; wait; sleep 100"
    with pytest.raises(KeyboardInterrupt):
        process.run(["sh", "-c", command], tmp_path, raise_)
    wait_until_gone(read_pid(tmp_path / "child"), read_pid(tmp_path / "parent"))


def test_stop_stops_commands_of_other_threads(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def work() -> None:
        try:
            process.run(["sh", "-c", "echo $$ > parent; sleep 100"], tmp_path)
        except process.Stopped as stopped:
            raised.append(stopped)

    thread = threading.Thread(target=work)
    thread.start()
    pid = read_pid(tmp_path / "parent")
    process.STOP.set()
    try:
        thread.join(10)
    finally:
        process.STOP.clear()
    assert len(raised) == 1
    wait_until_gone(pid)


def test_a_killed_caller_leaves_no_orphan(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(ROOT)], cwd=tmp_path) as caller:
        pids = read_pid(tmp_path / "child"), read_pid(tmp_path / "parent")
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
        wait_until_gone(*pids)
