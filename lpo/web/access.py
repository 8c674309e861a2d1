"""Who may ask a service, and how much: an ASGI layer around an app.

    app = Guard(app, token_for(host), max_bytes)

On loopback a request needs no token, but its Host header must name loopback, so that a page of another site cannot
reach the service through a name of its own that resolves to 127.0.0.1 (DNS rebinding). On any other address a request
needs the token: `Authorization: Bearer TOKEN`, or `?token=TOKEN` in the address.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "LPO_TOKEN"  # the environment variable; command lines are visible to all users of a machine


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def token_for(host: str) -> str | None:
    """The token that requests need: that of the environment, else a new one, else (on loopback) none."""
    return os.environ.get(TOKEN) or (None if is_loopback(host) else secrets.token_urlsafe(24))


def refuse(status: int, what: str, remedy: str = "", headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as every service answers it: {"error": what is wrong, "fix": what to do}."""
    return JSONResponse({"error": what, "fix": remedy}, status, headers)


def _name(host: str) -> str:
    """The name in a Host header, "" if it is broken."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """Refuses requests without the token (401), for another host (403), and with more than max_bytes (413).

    open_paths are answered without a token: health checks.
    """

    def __init__(self, app: ASGIApp, token: str | None, max_bytes: int, open_paths: Sequence[str] = ()) -> None:
        self.app, self.token, self.max_bytes, self.open_paths = app, token, max_bytes, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None:
            await self.app(scope, self._limited(receive), send)
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> JSONResponse | None:
        if self.token is None:
            if not is_loopback(_name(headers.get("host", ""))):
                return refuse(403, "this service answers to 127.0.0.1 and localhost only", "use one of these names")
        elif scope["path"] not in self.open_paths:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            given = given or parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                how = "send `Authorization: Bearer TOKEN`, or add ?token=TOKEN to the address"
                return refuse(401, "the token is missing or wrong", how, {"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_bytes:
            return refuse(413, *self._too_large())
        return None

    def _too_large(self) -> tuple[str, str]:
        return f"the request is larger than {self.max_bytes} bytes", "send fewer rows in one request"

    def _limited(self, receive: Receive) -> Receive:
        """Counts what really comes: a chunked request tells no length."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                raise HTTPException(413, self._too_large()[0])
            return message

        return limited
