"""A store of small pictures, a page on it, and a voter who asks it over HTTP."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from lpo.votes.questions import Rules
from lpo.votes.store import Store
from lpo.web.server import listener
from lpo.web.vote import VotePage

TUNED, BASE = "lpo-123456789abc", "base@0123456789ab"
RULES = Rules("night", votes_per_set=2, check_share=0.0, seed=0)


class Still:
    """Draws nothing: the pictures are there."""

    state = "finished"

    def wanted(self) -> None:
        pass


def picture(number: int, side: int = 32) -> bytes:
    """A PNG of seeded blocks of colour, with a number of bytes that depends on the number."""
    rng = np.random.default_rng(number)
    cells = rng.integers(0, 256, (2 + number % 7, 2 + number % 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cells).resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def fill(store: Store, sets: int, size: int = 2, source: str = "night", obvious: int = 0, **options: Any) -> None:
    """Sets of the tuned model's pictures beside the base's, the tuned model's first."""
    for number in range(sets):
        images = [picture(size * number + k) for k in range(size)]
        store.add_set(f"a cat {number}", images, [TUNED, BASE] * (size // 2), source=source, **options)
    for number in range(obvious):
        images = [picture(10_000 + 2 * number), picture(10_001 + 2 * number)]
        store.add_set(f"a dog {number}", images, [TUNED, "shuffled"], source=source, kind="obvious", best=0)


def client(page: VotePage, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
    return TestClient(page.app(token), base_url=f"http://{host}", raise_server_exceptions=False)


def page(folder: Path, rules: Rules = RULES) -> VotePage:
    return VotePage(Store(folder / "votes.sqlite"), rules, Still())


@contextmanager
def serving(page: VotePage, token: str | None = None) -> Iterator[str]:
    """The page on a free port of loopback, in a thread; its address."""
    config = uvicorn.Config(page.app(token), log_level="error", access_log=False, server_header=False)
    server = uvicorn.Server(config)
    with listener("127.0.0.1", 0) as made:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [made]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{made.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
