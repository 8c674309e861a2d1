"""The page on which people vote, and the five addresses behind it.

    GET  /                 the page
    GET  /pair?after=ID    {"pair": ID, "prompt", "images": [address, ...], "left", "right", "voter", "state",
                           "progress": {"votes", "last": ID of the vote that undo takes back}, "enough": whether all
                           votes together say enough}; if there is none now, pair is null and state is drawing,
                           finished or failed
    POST /vote             {"pair": ID, "choice": "left" | "right" | "tie" | "skip", "seconds"}; of four pictures
                           {"pair": ID, "order": [2, 0, 1, 3], "seconds"}: places from left to right, the best one first
    POST /undo             {"pair": ID} of the vote, or {} for the last one; answers as /pair does
    GET  /image/SHA256     a picture
    GET  /health           {"status": "ok"}

A vote that was answered with 200 is on the disk. The same vote sent again changes nothing; another one for the same
pair is refused with 409. Nothing that is sent names a model or says what kind of question it is. The answers that carry
the pictures of one question have the same length. A voter is a random cookie, stored under a pseudonym made of it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable
from importlib import resources
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lpo.votes.names import pseudonym
from lpo.votes.questions import Question, Refused, Rules, answer, ask, progress, undo
from lpo.votes.store import Store
from lpo.web.access import Guard, refuse
from lpo.web.browser import Browser, Limiter, too_many

COOKIE = "lpo_voter"
YEAR = 365 * 24 * 3600
SECRET = re.compile(r"[A-Za-z0-9_-]{22}")
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_BODY = 4096  # bytes
LONGEST = 3600.0  # seconds of one vote that are believed
PER_VOTER = (20.0, 60.0)  # requests a second, and at once
NEW_VOTERS = (1.0, 200.0)  # of one address
RANKS = {"left": [0, 1], "right": [1, 0], "tie": [0, 0], "skip": None}
FILES = {
    "vote.html": "text/html", "vote.js": "text/javascript", "vote.css": "text/css", "icon.svg": "image/svg+xml",
}  # fmt: skip


class Pictures(Protocol):
    """Where new pictures come from (lpo/votes/drawing.py)."""

    state: Any

    def wanted(self) -> None: ...


class VotePage:
    def __init__(
        self, store: Store, rules: Rules, pictures: Pictures, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """enough: asked at every question; it must answer fast."""
        self.store, self.rules, self.pictures, self.enough = store, rules, pictures, enough
        self._voters, self._new = Limiter(*PER_VOTER), Limiter(*NEW_VOTERS)
        self._known: set[str] = set()
        folder = resources.files("lpo.web") / "static"
        self._files = {name: (folder / name).read_bytes() for name in FILES}

    def app(self, token: str | None) -> ASGIApp:
        """The page behind its guard. token: what a browser must bring; None on loopback."""
        inner = Starlette(
            routes=[
                Route("/", self.page),
                Route("/pair", self.pair),
                Route("/vote", self.vote, methods=["POST"]),
                Route("/undo", self.take_back, methods=["POST"]),
                Route("/image/{sha256}", self.image),
                Route("/health", self.health),
                Route("/vote.js", self.file),
                Route("/vote.css", self.file),
                Route("/icon.svg", self.file),
            ],
            exception_handlers={Refused: _refused},
        )
        return Browser(Guard(inner, token, LARGEST_BODY, ("/health",)), token)

    def page(self, request: Request) -> Response:
        return self._named(request, lambda voter: HTMLResponse(self._files["vote.html"]))

    def pair(self, request: Request) -> Response:
        after = request.query_params.get("after", "")[:200]
        return self._named(request, lambda voter: self._next(voter, after))

    async def vote(self, request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            return body
        try:
            question, ranks, seconds = read_vote(body)
        except ValueError as error:
            return refuse(400, str(error))

        def write(voter: str) -> Response:
            new = answer(self.store, voter, question, ranks, seconds)
            return JSONResponse({"ok": True, "new": new, "progress": progress(self.store, voter)})

        return await run_in_threadpool(self._named, request, write)

    async def take_back(self, request: Request) -> Response:
        body = await _body(request)
        if isinstance(body, Response):
            return body
        question = body.get("pair", "")
        if not isinstance(question, str) or not _is_name(question):
            return refuse(400, "pair must be a name that /pair gave")
        return await run_in_threadpool(
            self._named, request, lambda voter: self._shown(voter, undo(self.store, voter, question))
        )

    def image(self, request: Request) -> Response:
        name = request.path_params["sha256"]
        found = self.store.image(name) if SHA256.fullmatch(name) else None
        if found is None:
            return refuse(404, "there is no such picture")
        data, length = found
        padded = data + bytes(length - len(data))  # a PNG ends before the zeros, and viewers stop there
        return Response(padded, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})

    def file(self, request: Request) -> Response:
        name = request.url.path.lstrip("/")
        return Response(self._files[name], media_type=FILES[name], headers={"cache-control": "no-cache"})

    def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def _next(self, voter: str, after: str) -> Response:
        question, few = ask(self.store, voter, self.rules, after)
        if few:
            self.pictures.wanted()
        return self._shown(voter, question)

    def _shown(self, voter: str, question: Question | None) -> Response:
        body: dict[str, Any] = {"pair": None, "voter": voter, "progress": progress(self.store, voter)}
        body["enough"] = self.enough()
        if question is None:
            return JSONResponse(body | {"state": self.pictures.state})
        images = [f"/image/{name}" for name in question.shown]
        sides = {"left": images[0], "right": images[1]} if len(images) == 2 else {}
        body |= {"pair": question.question_id, "prompt": question.prompt, "images": images, "state": "ready"}
        return JSONResponse(body | sides)

    def _named(self, request: Request, respond: Any) -> Response:
        """The response for the voter of a request, who gets a cookie on the first one."""
        secret = request.cookies.get(COOKIE, "")
        known = SECRET.fullmatch(secret) is not None
        secret = secret if known else secrets.token_urlsafe(16)
        voter = pseudonym(secret)
        if wait := self._voters.wait(voter):
            return too_many(wait)
        if voter not in self._known:
            if wait := self._new.wait(request.client.host if request.client else ""):
                return too_many(wait)
            self._known.add(voter)
        response = respond(voter)
        if not known:
            response.set_cookie(COOKIE, secret, max_age=YEAR, httponly=True, samesite="strict")
        return response


def read_vote(body: dict[str, Any]) -> tuple[str, list[int] | None, float]:
    """(question_id, ranks from left to right or None for a skip, seconds). Raises ValueError with what is wrong."""
    question, choice, order = body.get("pair"), body.get("choice"), body.get("order")
    seconds = body.get("seconds", 0.0)
    if unknown := sorted(body.keys() - {"pair", "choice", "order", "seconds"}):
        raise ValueError(f"unknown: {', '.join(unknown)[:100]}")
    if not isinstance(question, str) or not _is_name(question):
        raise ValueError("pair must be a name that /pair gave")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError("seconds must be a number, not below 0")
    if order is not None:
        whole = isinstance(order, list) and all(type(place) is int for place in order)
        if choice is not None or not whole or sorted(order) != list(range(len(order))):
            raise ValueError("order must list every place once, the best first, and choice must be absent")
        return question, [order.index(place) for place in range(len(order))], min(float(seconds), LONGEST)
    if not isinstance(choice, str) or choice not in RANKS:
        raise ValueError(f"choice must be one of {', '.join(RANKS)}")
    return question, RANKS[choice], min(float(seconds), LONGEST)


def _is_name(value: str) -> bool:
    return value.isascii() and len(value) <= 200


async def _body(request: Request) -> dict[str, Any] | Response:
    """The JSON object of a request, or the answer to one that brings something else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return refuse(415, "the request is not JSON", "send application/json")
    try:
        body = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        body = None
    return body if isinstance(body, dict) else refuse(400, "the request is not one JSON object")


def _refused(request: Request, error: Exception) -> Response:
    return refuse(409, error.what if isinstance(error, Refused) else "refused")
