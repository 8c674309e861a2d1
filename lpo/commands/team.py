"""team: simulated annotators vote on the page of `lpo vote`, over HTTP, as people in their browsers do.

An annotator knows what a person sees: the prompt and the pictures of a question. With u the utility of a picture
(lpo/emoji/oracle.py, weights of the section dataset), it answers as the labels of the stage dataset are made:

    two pictures    tie if |u_l - u_r| < tie_margin, else left with probability sigmoid((u_l - u_r) / temperature)
    four pictures   ordered by u + temperature g, g of the standard Gumbel distribution (Plackett-Luce)

and with probability flip_rate the other way round. Annotators take turns. Each has a random stream of its own, so what
it answers depends on the seed and on the questions alone. Their votes are marked as simulated (lpo/votes/names.py).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2
import numpy as np
import typer

from lpo.config import Dataset
from lpo.data.simulated import label
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import CANVAS, parse
from lpo.errors import LpoError
from lpo.images import decode_rgb
from lpo.random import numpy_generator
from lpo.votes.names import simulated_secret

COOKIE = "lpo_voter"
PATIENCE = 300.0  # seconds that an annotator waits for the next pictures
END = b"IEND"  # of a PNG; four bytes of checksum follow, then what the page adds
TIMEOUT = 60.0


def run(config: Dataset, url: str, voters: int, votes: int, seed: int) -> None:
    """Let `voters` annotators answer `votes` questions each, fewer where the page runs out of pictures.

    Prints one line of JSON: {"voters", "answers", "seconds"}.

    Raises:
        LpoError: if the page does not answer, refuses a vote, or shows what only people can judge.
    """
    begun, answers = time.monotonic(), 0
    with ExitStack() as stack:
        team = [stack.enter_context(Annotator(url, number, config, seed)) for number in range(voters)]
        turns: list[Iterator[str]] = [annotator.answers() for annotator in team]
        for _ in range(votes):
            done = [next(turn, None) for turn in turns]
            answers += sum(answer is not None for answer in done)
            if not any(done):
                break
    seconds = round(time.monotonic() - begun, 1)
    typer.echo(json.dumps({"voters": voters, "answers": answers, "seconds": seconds}))


class Annotator:
    def __init__(self, url: str, number: int, config: Dataset, seed: int) -> None:
        """url: the page's address as `lpo vote` prints it, with its token where it has one."""
        self.url, self.config = url, config
        self.rng = numpy_generator(seed, "simulated annotator", number)
        where = urlsplit(url)
        self.client = httpx2.Client(
            base_url=f"{where.scheme}://{where.netloc}", cookies={COOKIE: simulated_secret(number)},
            follow_redirects=True, timeout=TIMEOUT, trust_env=False,
        )  # fmt: skip

    def __enter__(self) -> Annotator:
        self._ask("GET", self.url)  # takes the token, if there is one
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def answers(self) -> Iterator[str]:
        """Answer one question after another; yields what was said, and ends where there are no more pictures."""
        while question := self._next():
            begun = time.monotonic()
            said = self._decide(question["prompt"], [self._picture(address) for address in question["images"]])
            self._ask("POST", "/vote", {"pair": question["pair"], "seconds": time.monotonic() - begun} | said)
            yield json.dumps(said)

    def _next(self) -> dict | None:
        waited = 0.0
        while waited < PATIENCE:
            found = self._ask("GET", "/pair").json()
            if found["pair"] is not None:
                return dict(found)
            if found["state"] != "drawing":
                return None
            time.sleep(0.5)
            waited += 0.5
        raise LpoError(f"no picture was drawn in {PATIENCE:.0f} seconds", self.url, "see what `lpo vote` printed")

    def _picture(self, address: str) -> bytes:
        """The bytes of a picture, which must be those that its name says."""
        data = self._ask("GET", address).content
        data = data[: data.rfind(END) + len(END) + 4]
        if hashlib.sha256(data).hexdigest() != address.rsplit("/", 1)[-1]:
            raise LpoError("the page sent another picture than it named", address)
        return data

    def _decide(self, prompt: str, pictures: list[bytes]) -> dict[str, object]:
        """What a vote says besides its question: {"choice"} of two pictures, {"order"} of more."""
        try:
            asked = parse(prompt)
        except KeyError:
            what = f"no simulated annotator understands the prompt {prompt[:80]!r}"
            raise LpoError(what, self.url, "they know the prompts of the emoji world; let people vote") from None
        verdicts = judge(decode_rgb(pictures, CANVAS, pixel_art=True), [asked] * len(pictures))
        utility = np.array([verdict.utility(*self.config.utility_weights) for verdict in verdicts])
        if len(pictures) == 2:
            share = float(label(utility[:1] - utility[1:], self.config, self.rng)[0])
            return {"choice": {1.0: "left", 0.5: "tie", 0.0: "right"}[share]}
        order = np.argsort(-(utility + self.config.temperature * self.rng.gumbel(size=len(utility))))
        flipped = self.rng.random() < self.config.flip_rate
        return {"order": [int(place) for place in (order[::-1] if flipped else order)]}

    def _ask(self, method: str, address: str, body: dict | None = None) -> httpx2.Response:
        """The page's answer; waits where it asks to. Raises LpoError if there is none, or a refusal."""
        while True:
            try:
                answer = self.client.request(method, address, json=body)
            except httpx2.HTTPError as error:
                raise LpoError(f"the page does not answer: {error}", self.url, "start it: lpo vote") from error
            if answer.status_code != 429:
                break
            time.sleep(float(answer.headers.get("retry-after", 1)))
        if answer.is_error:
            raise LpoError(f"the page answered {answer.status_code}: {answer.text[:200]}", f"{method} {address}")
        return answer
