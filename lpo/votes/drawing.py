"""Pictures are drawn in the background while people look at those that are there.

    with Drawing(store, source, produce) as drawing:
        drawing.wanted()                    more sets are needed; returns at once
        drawing.state                       "drawing", "finished" or what went wrong

`produce()` draws and returns the next sets, none when there are no more. One thread calls it, so a model is used by one
thread only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lpo.votes.store import Split, Store


@dataclass(frozen=True)
class Drawn:
    """Pictures (PNG) of one prompt; best is the place of the one that everybody prefers, in an obvious set."""

    prompt: str
    images: list[bytes]
    models: list[str]
    split: Split = "train"
    best: int | None = None

    @property
    def kind(self) -> Literal["regular", "obvious"]:
        return "regular" if self.best is None else "obvious"


class Drawing:
    def __init__(
        self, store: Store, source: str, produce: Callable[[], list[Drawn]], failed: Callable[[BaseException], None]
    ) -> None:
        """failed: is told what `produce` raised; nothing is drawn after that, and voters see what is there."""
        self.store, self.source, self.produce, self.failed = store, source, produce, failed
        self.state: Literal["drawing", "finished", "failed"] = "drawing"
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)

    def __enter__(self) -> Drawing:
        self._wake.set()  # the first sets, before anybody asks
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join()

    def wanted(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stop.is_set() or self.state != "drawing":
                return
            try:
                sets = self.produce()
                for one in sets:
                    self.store.add_set(
                        one.prompt, one.images, one.models, split=one.split, kind=one.kind, best=one.best,
                        source=self.source,
                    )  # fmt: skip
            except BaseException as error:  # the page must say it, whatever a model raised
                self.state = "failed"
                self.failed(error)
                return
            if not sets:
                self.state = "finished"
