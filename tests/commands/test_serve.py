"""`lpo serve reward`: what is said on the command line reaches the service."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.commands import serve
from lpo.errors import LpoError
from lpo.web import server
from lpo.web.reward import Limits


def test_options_reach_the_service_and_the_queue_holds_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(serve, "reward", lambda *words: calls.append(words))
    assert CliRunner().invoke(cli.app, ["serve", "reward"]).exit_code == 0
    words = ["runs/reward", "--base", "a/b", "--device", "cpu", "--dtype", "bf16", "--host", "0.0.0.0", "--port", "0"]
    words += [
        "--max-batch",
        "500",
        "--max-wait-ms",
        "2.5",
        "--max-queue",
        "100",
        "--max-megabytes",
        "1",
        "--embeddings",
    ]
    assert CliRunner().invoke(cli.app, ["serve", "reward", *words]).exit_code == 0
    assert calls == [
        (Path("data/reward"), None, "auto", "fp32", "127.0.0.1", 8000, Limits(), False),
        (Path("runs/reward"), "a/b", "cpu", "bf16", "0.0.0.0", 0, Limits(500, 2.5, 500, 2**20), True),
    ]


def test_a_folder_without_a_reward_and_an_address_in_use_are_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["serve", "reward", str(tmp_path)])
    assert isinstance(result.exception, LpoError) and "no reward model here" in str(result.exception)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(LpoError, match="cannot listen"):
            server.serve(lambda *words: None, "127.0.0.1", taken.getsockname()[1], None)  # type: ignore[arg-type]
