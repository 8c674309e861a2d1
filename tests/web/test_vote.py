"""The page's addresses: what they answer, to whom, and what nobody can learn from them."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.ballot_box import BASE, RULES, TUNED, client, fill, page, picture

from lpo.votes.store import to_png, votes_frame
from lpo.web.browser import Limiter
from lpo.web.vote import VotePage

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}} ${7*7}",
    "\u202e\u0000 nul",
    "a" * 5000,
]


@pytest.fixture
def box(tmp_path: Path) -> VotePage:
    made = page(tmp_path)
    fill(made.store, 30)
    return made


def vote(voter: TestClient, choice: str = "left", **more: Any) -> Any:
    pair = voter.get("/pair").json()
    return voter.post("/vote", json={"pair": pair["pair"], "choice": choice, "seconds": 2.0, **more})


def test_a_vote_from_the_page_to_the_store(box: VotePage) -> None:
    voter = client(box)
    assert voter.get("/").status_code == 200
    pair = voter.get("/pair").json()
    assert pair["left"] != pair["right"] and pair["prompt"] == "a cat 0"
    body = {"pair": pair["pair"], "choice": "right", "seconds": 3.5}
    assert voter.post("/vote", json=body).json()["new"] is True
    assert voter.post("/vote", json=body).json()["new"] is False  # sent twice
    assert voter.post("/vote", json=body | {"choice": "tie"}).status_code == 409
    assert client(box).post("/vote", json=body).status_code == 409  # somebody else's question
    (row,) = votes_frame(box.store.path).to_dict("records")
    chosen = row["image_a"] if row["choice"] == "a" else row["image_b"]
    assert pair["right"] == f"/image/{chosen}" and row["seconds"] == 3.5 and row["voter"] == pair["voter"]
    assert {row["model_a"], row["model_b"]} == {TUNED, BASE}
    again = voter.post("/undo", json={}).json()
    assert (again["left"], again["right"]) == (pair["left"], pair["right"]) and again["progress"]["votes"] == 0
    assert votes_frame(box.store.path)["undone"].tolist() == [True]


def test_four_pictures_are_ranked_by_an_order(tmp_path: Path) -> None:
    box = page(tmp_path)
    fill(box.store, 2, size=4)
    voter = client(box)
    pair = voter.get("/pair").json()
    assert len(pair["images"]) == 4 and "left" not in pair
    for order in ([0, 1], [0, 1, 2, 2], [0, 1, 2, 4], "0123", [0, 1, 2, True]):
        assert voter.post("/vote", json={"pair": pair["pair"], "order": order}).status_code in (400, 409)
    assert voter.post("/vote", json={"pair": pair["pair"], "order": [2, 0, 3, 1]}).status_code == 200
    frame = votes_frame(box.store.path)
    best = pair["images"][2].removeprefix("/image/")
    mine = frame[(frame["image_a"] == best) | (frame["image_b"] == best)]
    assert len(frame) == 6 and (mine["choice"] == mine["image_a"].eq(best).map({True: "a", False: "b"})).all()


def test_nothing_that_is_sent_tells_the_model_or_the_kind(tmp_path: Path) -> None:
    box = page(tmp_path, replace(RULES, check_share=0.5))
    box._voters = Limiter(1000, 1000)
    fill(box.store, 60, obvious=20)
    voter = client(box)
    answers = [voter.get("/")]
    headers, shapes = set(), set()
    for _ in range(60):
        pair = voter.get("/pair")
        body = pair.json()
        pictures = [voter.get(body[side]) for side in ("left", "right")]
        assert len(pictures[0].content) == len(pictures[1].content)  # although the PNGs differ in size
        assert all(Image.open(io.BytesIO(picture.content)).size == (32, 32) for picture in pictures)
        headers |= {json.dumps(sorted(picture.headers.items())) for picture in pictures}
        shapes.add(tuple(sorted(body)))
        answers += [pair, voter.post("/vote", json={"pair": body["pair"], "choice": "left", "seconds": 1})]
    said = " ".join(answer.text + str(answer.headers) for answer in answers)
    assert not re.search("lpo-1234|base@|shuffled|obvious|repeat|regular|tuned", said)
    assert len(shapes) == 1
    assert len({re.sub(r"content-length\", \"\d+", "", header) for header in headers}) == 1
    kinds = votes_frame(box.store.path)["kind"].value_counts()
    assert kinds["obvious"] > 5 and kinds["repeat"] > 5  # they were among them


def test_the_time_of_an_answer_does_not_tell_the_model(tmp_path: Path) -> None:
    """The tuned model's PNGs are far larger. In an order drawn by lot, the seconds of the answers rank both models as
    coins would: |z| of the rank sum is below 5, which chance exceeds once in two million runs, on a busy machine too.
    """
    box = page(tmp_path)
    box._voters = box._new = Limiter(1e6, 1e6)
    rng, model_of = np.random.default_rng(0), {}
    for i in range(40):
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8), np.full((32, 32, 3), i, np.uint8)
        images = [to_png(Image.fromarray(each)) for each in pixels]
        assert len(images[0]) > 10 * len(images[1])
        box.store.add_set(f"a cat {i}", images, [TUNED, BASE], source="night")
        model_of |= {hashlib.sha256(data).hexdigest(): data is images[0] for data in images}
    voter, names, seconds = client(box), list(model_of) * 2, []
    rng.shuffle(names)
    for name in names:
        begun = time.perf_counter()
        assert voter.get(f"/image/{name}").status_code == 200
        seconds.append(time.perf_counter() - begun)
    tuned = np.array([model_of[name] for name in names])

    def z(seconds: np.ndarray) -> float:
        """Mann and Whitney's statistic of the tuned model's pictures among all."""
        n, m, ranks = tuned.sum(), (~tuned).sum(), np.argsort(np.argsort(seconds)) + 1
        return float((ranks[tuned].sum() - n * (n + m + 1) / 2) / (n * m * (n + m + 1) / 12) ** 0.5)

    spread = np.subtract(*np.percentile(seconds, [75, 25]))
    assert abs(z(np.array(seconds))) < 5 < z(seconds + 2 * spread * tuned)  # it would find a difference


def test_pictures_are_found_by_their_hash_alone(box: VotePage) -> None:
    voter = client(box)
    name = voter.get("/pair").json()["left"]
    assert voter.get(name).headers["content-type"] == "image/png"
    odd = ["0" * 64, name[7:].upper(), name[7:-1], "..%2F..%2Fvotes.sqlite", "%2e%2e/params.yaml", "' OR 1=1 --"]
    assert [voter.get(f"/image/{each}").status_code for each in odd] == [404] * len(odd)
    for path in (
        "/image/",
        "/image",
        "/static/",
        "/data/votes.sqlite",
        "/params.yaml",
        "/.git/config",
        "/vote.py",
    ):
        assert voter.get(path).status_code in (404, 405), path


@pytest.mark.parametrize("prompt", HOSTILE)
def test_a_hostile_prompt_is_data_and_nothing_else(tmp_path: Path, prompt: str) -> None:
    box = page(tmp_path)
    box.store.add_set(prompt, [picture(1), picture(2)], [TUNED, BASE], source="night")
    voter = client(box)
    answer = voter.get("/pair")
    assert answer.json()["prompt"] == prompt and answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    text = voter.get("/").text
    assert prompt not in text and "<script>" not in text and "onerror" not in text and "style=" not in text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b"null", 400), (b"{", 400), (b"\xff", 400), (b"[" * 3000, 400),
        (b'{"pair": 1, "choice": "left"}', 400), (b'{"pair": "x"}', 400), (b'{"pair": "x", "choice": "both"}', 400),
        (b'{"pair": "x", "choice": ["left"]}', 400), (b'{"pair": "x", "choice": "left", "seconds": -1}', 400),
        (b'{"pair": "x", "choice": "left", "seconds": NaN}', 400),
        (b'{"pair": "x", "choice": "left", "voter": 1}', 400),
        (b'{"pair": "x", "choice": "left", "seconds": true}', 400), (b'{"pair": "x", "choice": "left"}', 409),
        (b'{"pair": "\' OR 1=1 --", "choice": "left"}', 409), (b'{"pair": "\\u0000\\ud800", "choice": "left"}', 400),
        (b" " * 5000, 413),
    ],
)  # fmt: skip
def test_hostile_forms_are_refused_and_change_nothing(box: VotePage, body: bytes, status: int) -> None:
    voter = client(box)
    voter.get("/pair")
    for path in ("/vote", "/undo") if status in (413,) else ("/vote",):
        answer = voter.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status and "error" in answer.json()
    assert votes_frame(box.store.path).empty


def test_what_another_site_sends_is_refused(box: VotePage) -> None:
    voter = client(box)
    pair = voter.get("/pair").json()["pair"]
    body = {"pair": pair, "choice": "left"}
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example", "http://[", "https://127.0.0.1:1"):
        assert voter.post("/vote", json=body, headers={"origin": origin}).status_code == 403
    form = voter.post("/vote", data={"pair": pair, "choice": "left"})  # what a form can send without asking first
    assert form.status_code == 415
    assert voter.post("/vote", content=json.dumps(body), headers={"content-type": "text/plain"}).status_code == 415
    assert client(box, host="evil.example").get("/pair").status_code == 403
    assert votes_frame(box.store.path).empty
    assert voter.post("/vote", json=body, headers={"origin": "http://127.0.0.1"}).status_code == 200


def test_elsewhere_than_on_loopback_the_address_holds_a_token(box: VotePage) -> None:
    stranger = client(box, "secret", "votes.example")
    paths = ["/", "/pair", "/vote.js", "/image/" + "0" * 64, "/?token=wrong", "/pair?token="]
    assert [stranger.get(path).status_code for path in paths] == [401] * len(paths)
    assert stranger.post("/vote", json={}).status_code == 401 and stranger.get("/health").status_code == 200
    assert stranger.get("/pair", headers={"cookie": "lpo_access=wrong"}).status_code == 401
    first = stranger.get("/?token=secret", follow_redirects=False)
    assert first.status_code == 303 and first.headers["location"] == "/"
    cookie = first.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert vote(stranger).status_code == 200


def test_answers_forbid_what_is_not_of_this_server(box: VotePage) -> None:
    voter = client(box)
    for path in ("/", "/pair", "/vote.js", "/nothing", voter.get("/pair").json()["left"]):
        headers = voter.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["referrer-policy"] == "no-referrer" and headers["x-frame-options"] == "DENY"
    static = Path(__file__).parents[2] / "lpo/web/static"
    text = "".join(file.read_text(encoding="utf-8") for file in static.iterdir() if file.suffix != ".svg")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|innerHTML|eval\(|document\.write", text)


def test_who_asks_too_often_waits(box: VotePage) -> None:
    box._voters = Limiter(0.5, 20)
    voter = client(box)
    answers = [voter.get("/pair") for _ in range(30)]
    slow = [answer for answer in answers if answer.status_code == 429]
    assert answers[0].status_code == 200 and slow and int(slow[0].headers["retry-after"]) >= 1
    assert client(box).get("/pair").status_code == 200  # somebody else need not


def test_nobody_is_many_voters(box: VotePage) -> None:
    box._new = Limiter(0.1, 20)
    status = [client(box).get("/pair").status_code for _ in range(30)]
    assert status[:20] == [200] * 20 and 429 in status[20:]


def test_a_pseudonym_does_not_let_anybody_vote_under_it(box: VotePage) -> None:
    voter = client(box)
    name = voter.get("/pair").json()["voter"]
    assert name.startswith("voter-") and name not in str(voter.cookies)
    assert voter.get("/pair").json()["voter"] == name
    other = client(box)
    other.cookies.set("lpo_voter", name.removeprefix("voter-"))
    assert other.get("/pair").json()["voter"] != name
