"""The judge behind an HTTP API, against a server of this machine that speaks OpenAI's chat completions, and fails."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.published_judges import photo

from lpo.config import VlmJudge, check_params, load_params
from lpo.config.reader import parse_yaml
from lpo.errors import ConfigError, LpoError
from lpo.evaluate import judges, shards
from lpo.evaluate.metrics import evaluate_results
from lpo.files import write_parquet
from lpo.preflight import models as preflight
from lpo.sampling.parts import Workers
from lpo.scorers import vlm

SECRET = "sk-not-to-be-seen"
Reply = tuple[int, Any, dict[str, str]]  # status, body, headers; a body of bytes is sent as it is


def says(text: str, finish: str = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return 200, {"choices": [choice], "usage": {"total_tokens": 321}}, {}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    reply: Callable[[int, dict[str, Any]], Reply]  # of the number of the request and its body

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()

    @property
    def config(self) -> VlmJudge:
        return VlmJudge(f"http://127.0.0.1:{self.server_address[1]}/v1", "some/model", "overall", 100, 32, 0.0)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body | {"path": self.path})
            self.server.keys.add(self.headers.get("Authorization"))
            number = len(self.server.asked)
        self.answer(*self.server.reply(number, body))

    def do_GET(self) -> None:
        self.answer(401 if self.headers.get("Authorization") != f"Bearer {SECRET}" else 404, {}, {})

    def answer(self, status: int, body: Any, headers: dict[str, str]) -> None:
        if status == 0:  # the connection breaks
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(vlm.KEY, SECRET)
    monkeypatch.setattr(vlm, "PAUSE", 0.005)
    found = Server()
    found.reply = lambda number, body: says("Score: 7.5")
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def by_prompt(scores: dict[str, str]) -> Callable[[int, dict[str, Any]], Reply]:
    """Answers as the prompt decides, so that their order is that of the pictures whatever the order of requests."""
    return lambda number, body: says(scores[body["messages"][0]["content"][1]["text"].rsplit("Prompt: ", 1)[1]])


def test_each_picture_is_one_request_and_no_answer_is_paid_for_twice(server: Server) -> None:
    scores = {f"p{i}": f"Score: {i}.5" for i in range(6)}
    server.reply = by_prompt(scores)
    pictures = [photo(i, 20, 12) for i in range(6)]
    judge = vlm.Vlm(server.config)
    assert judge.score(pictures, list(scores)).tolist() == [i + 0.5 for i in range(6)]
    assert len(server.asked) == 6 and server.keys == {f"Bearer {SECRET}"}
    sent = next(body for body in server.asked if body["messages"][0]["content"][1]["text"].endswith("Prompt: p3"))
    assert sent["path"] == "/v1/chat/completions" and sent["model"] == "some/model" and sent["temperature"] == 0
    head, data = sent["messages"][0]["content"][0]["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.asarray(pictures[3]))

    assert vlm.Vlm(server.config).score(pictures, list(scores)).tolist() == [i + 0.5 for i in range(6)]
    assert len(server.asked) == 6
    for changed, count in ((replace(server.config, model="other"), 7), (replace(server.config, aspect="alignment"), 8)):
        vlm.Vlm(changed).score(pictures[:1], ["p0"])
        assert len(server.asked) == count
    vlm.Vlm(server.config).score([photo(9)], ["p0"])  # another picture
    assert len(server.asked) == 9
    kept = [json.loads(path.read_text()) for path in vlm.ANSWERS.iterdir()]
    assert len(kept) == 9 and {answer["tokens"] for answer in kept} == {321}
    assert SECRET not in json.dumps(kept)
    next(vlm.ANSWERS.iterdir()).write_text('{"text"')  # a damaged file is asked for again
    vlm.Vlm(server.config).score(pictures, list(scores))
    assert len(server.asked) <= 10


@pytest.mark.parametrize(
    ("text", "score"),
    [("Score: 7", 7), ("score: **8.5**/10", 8.5), ("It fits.\n\n**Score: 9 / 10**", 9), ("6.5", 6.5), ("4/10.", 4),
     ("Score: 3. Because", 3), ("Score: 10", 10), ("Score: 0", 0), ("Score: 11", None), ("Score: -3", None),
     ("-3", None), ("Score: 7,5", None), ("Score: 80/100", None), ("Score: 8/5", None), ("Score: 3 or Score: 8", None),
     ("Score: 7-8", None), ("I like it, 9 of 10", None), ("I cannot judge pictures of people.", None), ("", None)],
)  # fmt: skip
def test_a_score_is_read_or_it_is_none(text: str, score: float | None) -> None:
    answer = {"text": text, "cut": False, "tokens": None}
    assert vlm.read_score(answer) == score
    assert vlm.read_score(answer | {"cut": True}) is None


def test_an_answer_without_a_score_is_counted_and_kept_not_guessed(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = by_prompt({"a": "Score: 2", "b": "no idea", "c": "Score: 4"})
    found = vlm.Vlm(server.config).score([photo(0)] * 3, ["a", "b", "c"])
    assert found[0] == 2 and math.isnan(found[1]) and found[2] == 4
    assert "1 of 3 answers hold no score, the first: 'no idea'" in caplog.text
    server.reply = lambda number, body: says("Score: 7", "length")
    assert math.isnan(vlm.Vlm(server.config).score([photo(0)], ["d"])[0])
    server.reply = lambda number, body: says("Score: 7.5")
    assert math.isnan(vlm.Vlm(server.config).score([photo(0)], ["d"])[0])  # what was cut stays so,
    longer = replace(server.config, max_tokens=64)
    assert vlm.Vlm(longer).score([photo(0)], ["d"]) == 7.5  # until it may be longer


def test_what_fails_for_the_moment_is_asked_again(server: Server) -> None:
    failures: list[Reply] = [
        (429, {"error": "slow down"}, {"Retry-After": "0.01"}), (503, b"", {"Retry-After": "soon"}), (0, b"", {}),
        (200, b"<html>", {}), (200, {"choices": []}, {}),
    ]  # fmt: skip
    server.reply = lambda number, body: failures[number - 1] if number <= len(failures) else says("Score: 5")
    assert vlm.Vlm(server.config).score([photo(0)], ["a"]).tolist() == [5] and len(server.asked) == 6


def test_a_refusal_is_told_at_once_and_the_key_never(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.reply = lambda number, body: (401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}, {})
    with pytest.raises(LpoError, match="the server refuses: it says 401") as caught:
        vlm.Vlm(server.config).score([photo(0)], ["a"])
    assert len(server.asked) == 1 and SECRET not in str(caught.value) + caplog.text and "***" in caught.value.what


def test_a_server_that_is_too_slow_or_gone_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "TIMEOUT", 0.05)
    monkeypatch.setattr(vlm, "TRIES", 2)
    server.reply = lambda number, body: (time.sleep(0.5), says("Score: 5"))[1]
    with pytest.raises(LpoError, match="failed 2 times in a row: ReadTimeout"):
        vlm.Vlm(server.config).score([photo(0)], ["a"])
    gone = replace(server.config, url="http://127.0.0.1:9/v1")
    with pytest.raises(LpoError, match="failed 2 times in a row: ConnectError"):
        vlm.Vlm(gone).score([photo(0)], ["a"])
    assert "does not answer" in str(vlm.problem(gone)) and vlm.problem(server.config) is None
    monkeypatch.setenv(vlm.KEY, "another")
    assert vlm.problem(server.config) == f"vlm: {server.config.url} refuses the key in LPO_VLM_KEY: it says 401"


def test_a_server_that_dies_in_the_middle_loses_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the cache of the evaluation: the part before stays, of the part in the middle every answer."""
    monkeypatch.setattr(vlm, "TRIES", 1)
    monkeypatch.setattr(vlm, "AT_ONCE", 1)
    params = load_params()
    config = replace(params.evaluate, judges=("vlm",), vlm=server.config, judge_batch_size=2)
    (judge,) = judges.judges_of(config, params.score, (1, 1), params.model, {}, None)
    parts = []
    for number in range(2):
        buffer = io.BytesIO()
        photo(number).save(buffer, "PNG")
        parts.append(Path(f"cache/{number:05d}.parquet"))
        rows = {"prompt": [f"p{4 * number + i}" for i in range(4)], "category": "x", "seed": range(4)}
        write_parquet(parts[-1], pd.DataFrame(rows | {"png": [buffer.getvalue()] * 4}))
    ok = by_prompt({f"p{i}": "what?" if i == 6 else f"Score: {i}" for i in range(8)})
    server.reply = lambda number, body: ok(number, body) if number != 6 else (500, {}, {})
    with Workers(1) as workers, pytest.raises(LpoError, match="failed 1 times in a row"):
        shards.score_parts(judge, parts, workers)
    assert shards.scores_path(parts[0], judge).exists() and not shards.scores_path(parts[1], judge).exists()
    server.reply = ok
    asked = len(server.asked)
    with Workers(1) as workers:
        shards.score_parts(judge, parts, workers)
    assert len(server.asked) - asked == 3  # of four, one was judged before the server died
    scores = pd.concat([pd.read_parquet(shards.scores_path(part, judge)) for part in parts])["vlm"]
    assert scores.fillna(-1).tolist() == [0, 1, 2, 3, 4, 5, -1, 7]


def test_pairs_without_a_score_are_left_out_and_counted() -> None:
    rows = [
        {"prompt": f"p{i}", "category": "all" if i else "none", "seed": 0, "model": model, "png": b"", "vlm": score}
        for i in range(4)
        for model, score in (("base", 5.0), ("base_matched", 5.0), ("tuned", [math.nan, 6.0, 7.0, 4.0][i]))
    ]
    found = evaluate_results(pd.DataFrame(rows), ["vlm"], resamples=20)
    assert found["win_rate"]["overall"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert found["judges"]["vlm"]["without_score"] == 1 and found["judges"]["vlm"]["prompts"] == 3
    assert found["judges"]["vlm"]["difference"] == pytest.approx(2 / 3, abs=1e-5)
    assert set(found["by_category"]) == {"all"}


def test_a_budget_is_held_and_an_address_with_a_key_refused_before_the_work(project: Path, repository: Path) -> None:
    params = load_params(repository / "params.yaml")
    config = replace(params.evaluate, judges=("vlm",), prompts=50, images_per_prompt=2)
    asked = replace(params, evaluate=replace(config, vlm=replace(config.vlm, max_requests=299)))
    (mistake,) = preflight.judges(asked, ())  # the base at two guidance scales, and the tuned model
    assert "asked about 300 pictures; its budget is 299 requests" in mistake.what
    assert list(preflight.judges(replace(asked, evaluate=config), ())) == []
    tree = parse_yaml((repository / "params.yaml").read_text(), "params.yaml")
    tree["evaluate"]["judges"] = ["vlm"]
    for url, said in (("127.0.0.1:8000", "must be an address"), ("https://me:key@host/v1", "must hold no key"),
                      ("https://host/v1?key=x", "must hold no key")):  # fmt: skip
        tree["evaluate"]["vlm"]["url"] = url
        with pytest.raises(ConfigError, match=f"evaluate.vlm.url: {said}"):
            check_params(tree, "params.yaml")
