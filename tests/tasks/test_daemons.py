"""Background processes by their .pid files: started, found again, stopped, never mistaken for another process."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from flows import service
from lpo.errors import LpoError
from tasks import daemons


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (daemons, service):
        monkeypatch.setattr(module, "STATE", tmp_path)
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_started_known_and_stopped(state: Path) -> None:
    daemons.start("server", ["sleep", "100"], environment())
    assert daemons.alive("server")
    assert daemons.stop("server") and not daemons.alive("server") and not (state / "server.pid").exists()
    assert not daemons.stop("server")


def test_one_that_does_not_end_is_killed(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "ALONE", 0.3)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w'); time.sleep(100)"
    daemons.start("worker", ["python", "-c", deaf], environment())
    daemons.wait_for("worker", (state / "deaf").exists)
    assert daemons.stop("worker") and not daemons.alive("worker")


def test_another_process_with_that_number_is_left_alone(state: Path) -> None:
    (state / "server.pid").write_text(json.dumps({"pid": os.getpid(), "started": 1.0}))
    assert not daemons.alive("server") and not daemons.stop("server")
    (state / "server.pid").write_text("{")
    assert not daemons.stop("server")


def test_one_that_ended_before_its_note_was_written_is_not_alive(state: Path) -> None:
    (state / "server.pid").write_text(json.dumps({"pid": 2**22 + 1, "started": None}))  # above the largest number
    assert not daemons.alive("server") and not daemons.stop("server")


def test_a_process_that_ends_is_told_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    daemons.start("server", ["sh", "-c", "echo no room; exit 1"], environment())
    with pytest.raises(LpoError, match="the server ended:\nno room"):
        daemons.wait_for("server", lambda: False)


def test_a_port_of_another_program_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LpoError) as caught:
            service.start_server(f"http://127.0.0.1:{port}/api", port, environment())
    assert f"port {port} is used" in str(caught.value) and "PREFECT_API_URL=http://127.0.0.1:" in str(caught.value)


def test_a_half_dead_server_is_stopped_before_it_is_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemons.start("server", ["sleep", "100"], environment())
    half_dead = daemons.alive("server")
    started: list[str] = []
    monkeypatch.setattr(service, "start", lambda name, words, env: started.append(name))
    monkeypatch.setattr(service, "wait_for", lambda name, ready: None)
    port = daemons.free_port()
    service.start_server(f"http://127.0.0.1:{port}/api", port, environment())
    assert started == ["server"] and daemons.start_time(half_dead) is None
    assert "does not answer; restarting" in capsys.readouterr().out
