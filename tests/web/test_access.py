"""Who may ask a service: loopback by name, others by token, and no more than the limit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from lpo.web.access import Guard, is_loopback, token_for


async def size(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


def client(token: str | None, host: str = "127.0.0.1:8000") -> TestClient:
    app = Starlette(routes=[Route("/size", size, methods=["POST"]), Route("/healthz", size)])
    return TestClient(Guard(app, token, 10, ["/healthz"]), base_url=f"http://{host}")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("[::1]:9", 200), ("evil.example", 403), ("10.0.0.1", 403)],
)
def test_without_a_token_only_loopback_names_are_answered(host: str, status: int) -> None:
    assert client(None, host).post("/size", content=b"abc").status_code == status


def test_a_broken_host_header_is_refused() -> None:
    assert client(None).post("/size", headers={"host": "[::"}).status_code == 403


def test_with_a_token_every_host_is_answered_that_has_it() -> None:
    asked = client("secret", "example.org")
    assert asked.post("/size").status_code == 401
    assert asked.post("/size?token=Secret").status_code == 401
    assert asked.post("/size", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert asked.post("/size?token=secret").status_code == 200
    assert asked.post("/size", headers={"authorization": "Bearer secret"}).status_code == 200
    assert asked.get("/healthz").status_code == 200  # a health check knows no token


def test_a_body_over_the_limit_is_refused_whether_it_tells_its_length_or_not() -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b"123456"] * 2

    asked = client(None)
    assert asked.post("/size", content=b"1" * 10).text == "10"
    assert asked.post("/size", content=b"1" * 11).status_code == 413
    assert asked.post("/size", content=chunks()).status_code == 413


def test_the_token_is_that_of_the_environment_and_needed_off_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPO_TOKEN", raising=False)
    assert token_for("127.0.0.1") is None and token_for("localhost") is None and token_for("::1") is None
    first, second = token_for("0.0.0.0"), token_for("0.0.0.0")
    assert first and second and first != second and len(first) >= 32
    monkeypatch.setenv("LPO_TOKEN", "mine")
    assert token_for("0.0.0.0") == token_for("127.0.0.1") == "mine"
    assert not is_loopback("0.0.0.0") and not is_loopback("127.0.0.1.example.org")
