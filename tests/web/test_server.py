"""What `lpo vote` and `lpo serve` print: the address, once they listen on it."""

from __future__ import annotations

import signal
import socket
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette

from lpo.web import server


def test_whoever_reads_the_address_can_connect_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = []

    def echo(line: str) -> None:
        where = urlsplit(line)
        socket.create_connection((where.hostname, where.port), timeout=10).close()  # refused, if nothing listened yet
        printed.append(where)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(server.typer, "echo", echo)
    with pytest.raises(KeyboardInterrupt):
        server.serve(Starlette(), "127.0.0.1", 0, "secret", "/here")
    ((scheme, address, path, query, _),) = printed
    assert (scheme, path, query) == ("http", "/here", "token=secret") and address.startswith("127.0.0.1:")


def test_a_service_that_does_not_start_prints_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    @asynccontextmanager
    async def broken(app: Starlette):
        raise RuntimeError("no model")
        yield

    with pytest.raises(SystemExit):
        server.serve(Starlette(lifespan=broken), "127.0.0.1", 0, None)
    assert capsys.readouterr().out == ""
