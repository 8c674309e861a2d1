"""Runs an app on one address, until it is interrupted."""

from __future__ import annotations

import socket

import typer
import uvicorn
from starlette.types import ASGIApp

from lpo.errors import LpoError

PATIENCE = 10  # seconds that requests under way may take after the interruption


class Announcing(uvicorn.Server):
    """Prints the address once it listens, so that whoever waits for the line can connect at once."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        typer.echo(self.address)


def listener(host: str, port: int) -> socket.socket:
    """A socket on one address; port 0 takes a free one.

    It names its protocol, or else asyncio does not know it for TCP and leaves Nagle's algorithm on: the body of an
    answer would wait for the acknowledgement of its headers, which takes 40 ms.

    Raises:
        LpoError: if nothing can listen on that address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise LpoError(
            f"cannot listen: {error.strerror or error}", f"{host}:{port}", "choose another --port"
        ) from error
    return made


def serve(app: ASGIApp, host: str, port: int, token: str | None, path: str = "/") -> None:
    """Listen, print the address, and answer requests. Port 0 takes a free port.

    Raises:
        LpoError: if nothing can listen on that address.
    """
    with listener(host, port) as made:
        name = f"[{host}]" if ":" in host else host
        query = f"?token={token}" if token else ""
        address = f"http://{name}:{made.getsockname()[1]}{path}{query}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE
        )
        Announcing(config, address).run(sockets=[made])
