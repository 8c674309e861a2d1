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


def serve(app: ASGIApp, host: str, port: int, token: str | None, path: str = "/") -> None:
    """Listen, print the address, and answer requests. Port 0 takes a free port.

    Raises:
        LpoError: if nothing can listen on that address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise LpoError(
            f"cannot listen: {error.strerror or error}", f"{host}:{port}", "choose another --port"
        ) from error
    with listener:
        name = f"[{host}]" if ":" in host else host
        query = f"?token={token}" if token else ""
        address = f"http://{name}:{listener.getsockname()[1]}{path}{query}"
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=PATIENCE
        )
        Announcing(config, address).run(sockets=[listener])
