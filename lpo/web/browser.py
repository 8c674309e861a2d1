"""What a page for people needs around `lpo.web.access.Guard`: a cookie, the origin, rates, and the headers of answers.

    app = Browser(Guard(app, token, max_bytes), token)

The token comes once in the address, and is a cookie from then on. What a page of another site sends is refused by its
origin. The headers of every answer forbid scripts, styles and frames of other servers, and being framed.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lpo.web.access import refuse

COOKIE = "lpo_access"
PER_ADDRESS = (400.0, 1200.0)  # requests a second, and at once: an office may stand behind one address
KNOWN = 10_000  # keys whose rates are remembered
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Limiter:
    """Token buckets by key: `rate` a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """0 if the key may pass now, else the seconds until it may."""
        with self._lock:
            now = time.monotonic()
            left, then = self._buckets.pop(key, (self.burst, now))
            left = min(self.burst, left + (now - then) * self.rate)
            self._buckets[key] = (left - 1 if left >= 1 else left, now)
            if len(self._buckets) > KNOWN:
                self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Browser:
    """An ASGI layer outside of the guard. It refuses with 429 (too many requests) and 403 (sent by another site)."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token, self._limiter = app, token, Limiter(*PER_ADDRESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._answer(request) or self.app
        if self.token is not None and _same(request.cookies.get(COOKIE), self.token):
            bearer = (b"authorization", f"Bearer {self.token}".encode())
            scope = {**scope, "headers": [bearer, *(pair for pair in scope["headers"] if pair[0] != bearer[0])]}
        await answer(scope, receive, _with_headers(send))

    def _answer(self, request: Request) -> Response | None:
        """The answer to a request that does not reach the app; None if it does."""
        if wait := self._limiter.wait(request.client.host if request.client else ""):
            return too_many(wait)
        origin = request.headers.get("origin")
        if request.method == "POST" and origin is not None and not _names(origin, request.headers.get("host", "")):
            return refuse(403, "a page of another site sent this")
        named = request.query_params.get("token")
        if self.token is None or request.url.path != "/" or not _same(named, self.token):
            return None
        answer = RedirectResponse("/", 303)  # so that the token leaves the address bar
        answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
        return answer


def too_many(wait: float) -> Response:
    """The answer to somebody who must wait for some seconds."""
    return refuse(429, "too many requests", "wait", {"retry-after": str(max(1, round(wait)))})


def _same(given: str | None, token: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


def _names(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that was asked; "null" and broken ones do not."""
    try:
        return bool(host) and urlsplit(origin).netloc == host
    except ValueError:
        return False


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending
