"""A vision-language model as a judge, over an HTTP API that is compatible with OpenAI's chat completions.

    judge = Vlm(params.evaluate.vlm)
    judge.score(pictures, prompts)          (N,) from 0 to 10; NaN where an answer holds no score

Each picture is one request to URL/chat/completions, with the picture as a PNG in a data URL. Answers are kept in
.checkpoints/vlm/ by a hash of model, instruction, prompt and picture, so that nothing is paid for twice and a failing
server loses nothing. What fails for the moment (429, 5xx, no connection, no answer in time, no JSON) is asked again
after a pause. An answer that is not a score is kept as it is, counted and never guessed at.

The key is in the environment variable LPO_VLM_KEY alone. It is sent to that address only and is in no message.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import torch
from PIL.Image import Image

from lpo.config import VlmJudge
from lpo.errors import LpoError
from lpo.files import key_of, write_json

KEY = "LPO_VLM_KEY"
ANSWERS = Path(".checkpoints/vlm")  # a file an answer
AT_ONCE = 4  # requests that are under way
TRIES, PAUSE, LONGEST_PAUSE = 6, 1.0, 60.0  # of a request; seconds before the second try, doubled after each
TIMEOUT = 120.0  # seconds of a request
QUESTIONS = {
    "overall": "How good is this picture, made by a text-to-image model for the prompt below? Weigh how well it shows "
    "what the prompt asks for and how good it looks.",
    "alignment": "How well does this picture show what the prompt below asks for: every object, number, colour, place "
    "and relation? Its looks do not count.",
    "aesthetics": "How good does this picture look: composition, light, colours, detail, and no flaws such as broken "
    "bodies or smeared texture? Whether it fits the prompt below does not count.",
}
ANSWER = (
    "Answer with one line and nothing else: Score: N, where N is a number from 0 (worst) to 10 (best), with at most "
    "one decimal."
)
NUMBER = r"(\d+(?:\.\d+)?)(?:\s*/\s*10)?"
NAMED = re.compile(rf"\bscore[\s:=*_`\"']{{1,6}}{NUMBER}(?!\d|\s*/|[.,–-]\d)", re.IGNORECASE)
ALONE = re.compile(rf"[\s*_`\"']*{NUMBER}[\s*_`\"'.]*")

log = logging.getLogger(__name__)


class Vlm:
    """Scores pictures by asking a server, and remembers its answers."""

    def __init__(self, config: VlmJudge, answers: Path = ANSWERS) -> None:
        self.config, self.answers = config, answers

    def score(self, pictures: Sequence[Image], prompts: Sequence[str]) -> torch.Tensor:
        """(N,) in float32.

        Raises:
            LpoError: if the server refuses, or fails for longer than the pauses last. Answers until then are kept.
        """
        with client(self.config) as server, ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self._answer, server, *row) for row in zip(pictures, prompts, strict=True)]
            try:
                found = [each.result() for each in asked]
            except BaseException:
                for each in asked:
                    each.cancel()
                raise
        scores = [read_score(answer) for answer in found]
        if without := scores.count(None):
            first = found[scores.index(None)]["text"]
            log.warning("vlm: %d of %d answers hold no score, the first: %.100r", without, len(scores), first)
        return torch.tensor([math.nan if score is None else score for score in scores])

    def _answer(self, server: httpx2.Client, picture: Image, prompt: str) -> dict[str, Any]:
        picture = picture.convert("RGB")
        text = question(self.config.aspect, prompt)
        pixels = hashlib.sha256(picture.tobytes()).hexdigest()
        path = self.answers / f"{key_of([self.config.model, text, picture.size, pixels])}.json"
        if (known := kept(path, self.config.max_tokens)) is None:
            known = ask(server, body(self.config, text, picture))
            asked = {"model": self.config.model, "prompt": prompt, "max_tokens": self.config.max_tokens}
            write_json(path, asked | known)
        return known


def question(aspect: str, prompt: str) -> str:
    """What the model is asked beside the picture."""
    return f"{QUESTIONS[aspect]}\n{ANSWER}\n\nPrompt: {prompt}"


def body(config: VlmJudge, text: str, picture: Image) -> dict[str, Any]:
    """The request of one picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    found: dict[str, Any] = {
        "model": config.model, "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": config.max_tokens,
    }  # fmt: skip
    return found if config.temperature is None else found | {"temperature": config.temperature}


def read_score(answer: dict[str, Any]) -> float | None:
    """The score of an answer: the number after "Score:", or the only thing it says. None where there is no such number,
    it is not from 0 to 10, the answer names several, or it was cut at its longest length."""
    text = answer["text"].strip()
    numbers = set(NAMED.findall(text))
    if not numbers and (alone := ALONE.fullmatch(text)):
        numbers = {alone[1]}
    if len(numbers) != 1 or answer["cut"]:
        return None
    score = float(numbers.pop())
    return score if score <= 10 else None


def kept(path: Path, max_tokens: int) -> dict[str, Any] | None:
    """An answer of before; None where there is none, the file is damaged, or it was cut and may now be longer."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["cut"] and found["max_tokens"] < max_tokens:
            return None
        return {"text": str(found["text"]), "cut": bool(found["cut"]), "tokens": found["tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def client(config: VlmJudge) -> httpx2.Client:
    """A client of the server. It follows no redirect, which could carry the key elsewhere."""
    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(base_url=config.url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT)


def ask(server: httpx2.Client, request: dict[str, Any]) -> dict[str, Any]:
    """{text, cut, tokens} of an answer: what it says, whether it was cut at its longest length, what it cost.

    Raises:
        LpoError: if the server refuses the request, or none of TRIES succeeds.
    """
    said = ""
    for pause in pauses():
        wait = pause
        try:
            response = server.post("chat/completions", json=request)
            if response.status_code == 200:
                return read_answer(response.json())
            said = f"it says {response.status_code}: {shown(response.text)}"
            wait = max(pause, asked_pause(response))
            refused = response.status_code < 500 and response.status_code not in (408, 409, 425, 429)
        except httpx2.HTTPError as error:
            said, refused = f"{type(error).__name__}: {shown(str(error))}", False
        except (ValueError, KeyError, IndexError, TypeError) as error:
            said, refused = f"its answer is no chat completion: {shown(repr(error))}", False
        if refused:
            remedy = f"check evaluate.vlm in params.yaml, and the key in {KEY}"
            raise LpoError(f"the server refuses: {said}", str(server.base_url), remedy)
        if pause:
            time.sleep(wait)
    what = f"the server failed {TRIES} times in a row: {said}"
    raise LpoError(what, str(server.base_url), "run evaluate again when it works: what was judged is kept")


def pauses() -> Iterator[float]:
    """Seconds to wait after each try: nothing after the last one."""
    yield from (min(PAUSE * 2**place, LONGEST_PAUSE) for place in range(TRIES - 1))
    yield 0.0


def asked_pause(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait, within reason; 0 where it names none."""
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), LONGEST_PAUSE)
    except ValueError:
        return 0.0


def read_answer(found: Any) -> dict[str, Any]:
    """The first choice of a chat completion. Raises KeyError, IndexError, TypeError or ValueError if it is none."""
    choice = found["choices"][0]
    text = choice["message"]["content"]
    if text is not None and not isinstance(text, str):
        raise ValueError("the content is no text")
    tokens = (found.get("usage") or {}).get("total_tokens")
    return {"text": text or "", "cut": choice.get("finish_reason") == "length", "tokens": tokens}


def shown(text: str) -> str:
    """What a server says, short and without the key, which some servers repeat."""
    if key := os.environ.get(KEY):
        text = text.replace(key, "***")
    return " ".join(text.split())[:300]


def problem(config: VlmJudge) -> str | None:
    """What is wrong with the server: nobody answers, or the key is refused. One small request without pictures."""
    try:
        with client(config) as server:
            status = server.get("models", timeout=20).status_code
    except httpx2.HTTPError as error:
        return f"vlm: {config.url} does not answer: {shown(str(error)) or type(error).__name__}"
    return f"vlm: {config.url} refuses the key in {KEY}: it says {status}" if status in (401, 403) else None


def check_plan(config: VlmJudge, pictures: int) -> None:
    """Raise LpoError if an evaluation has more pictures than the budget has requests, judged before or not."""
    if pictures > config.max_requests:
        what = f"the judge vlm would be asked about {pictures} pictures; its budget is {config.max_requests} requests"
        remedy = "raise it, or lower evaluate.prompts or evaluate.images_per_prompt"
        raise LpoError(what, "params.yaml: evaluate.vlm.max_requests", remedy)
