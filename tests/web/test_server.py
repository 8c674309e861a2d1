"""What `lpo vote` and `lpo serve` print: the address, once they listen on it."""

from __future__ import annotations

import asyncio
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
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            server.serve(Starlette(), "127.0.0.1", 0, "secret", "/here")
    finally:
        signal.signal(signal.SIGINT, usual)
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


def test_the_body_of_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers() -> None:
    """TCP_NODELAY is on for the connections of the listener."""

    async def options() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with server.listener("127.0.0.1", 0) as made:
            async with await asyncio.start_server(accepted, sock=made):
                with socket.create_connection(made.getsockname(), timeout=10):
                    return await asyncio.wait_for(found, 10)

    assert asyncio.run(options())
