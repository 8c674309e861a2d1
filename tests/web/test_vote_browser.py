"""The page in headless Chromium: 20 votes by keyboard, 20 by touch on a phone, and exactly these in the inbox."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.ballot_box import RULES, fill, page, serving

from lpo.votes.export import export
from lpo.web.vote import VotePage

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install playwright")
pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
]  # fmt: skip
NEXT = """before => { const stage = document.getElementById('stage');
return ['ready', 'finished'].includes(stage.dataset.state) && stage.dataset.pair !== before }"""
GUARD = 270  # milliseconds in which the page ignores a second tap
HOSTILE = "<img src=x onerror=document.title='no'> & \"quotes\""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield (found := started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]))
        found.close()


class Person:
    """A browser of its own, and what was chosen in it: prompt -> SHA-256 of the better picture, or "tie"."""

    def __init__(self, browser: Any, address: str, **device: Any) -> None:
        self.page = browser.new_context(**device).new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.said: dict[str, str] = {}
        self.page.goto(address)
        self.wait("")

    def wait(self, before: str) -> None:
        self.page.wait_for_function(NEXT, arg=before, timeout=60_000)
        self.page.wait_for_timeout(GUARD)

    def shown(self) -> tuple[str, str, list[str]]:
        """(the question, its prompt, the SHA-256 of its pictures)."""
        sources = self.page.eval_on_selector_all(".choose img", "images => images.map(image => image.src)")
        pair = self.page.get_attribute("#stage", "data-pair")
        return pair, self.page.inner_text("#prompt"), [source.rsplit("/", 1)[1] for source in sources]

    def say(self, choice: str, act: Any) -> None:
        pair, prompt, images = self.shown()
        if choice != "skip":
            self.said[prompt] = {"1": images[0], "2": images[-1], "tie": "tie"}[choice]
        act()
        self.wait(pair)

    def undo(self, act: Any) -> None:
        pair = self.shown()[0]
        act()
        self.wait(pair)
        del self.said[self.shown()[1]]


@pytest.fixture
def box(tmp_path: Path) -> VotePage:
    made = page(tmp_path, replace(RULES, votes_per_set=1))
    fill(made.store, 60)
    return made


def test_forty_votes_by_keyboard_and_by_touch_are_exactly_those_in_the_inbox(
    box: VotePage, browser: Any, tmp_path: Path
) -> None:
    with serving(box) as address:
        desk = Person(browser, address, viewport={"width": 1280, "height": 800})
        keys = {"1": "1", "2": "2", "tie": "Space", "skip": "s"}
        for number in range(22):
            choice = ("1", "2", "tie", "1", "2")[number % 5] if number not in (7, 15) else "skip"
            desk.say(choice, lambda key=keys[choice]: desk.page.keyboard.press(key))
            if number == 10:
                desk.undo(lambda: desk.page.keyboard.press("u"))
                desk.say("2", lambda: desk.page.keyboard.press("2"))
            if number == 12:
                desk.page.reload()
                desk.wait("")
        assert desk.page.inner_text("#count") == "20 votes"
        phone = Person(
            browser, address, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True,
            device_scale_factor=2,
        )  # fmt: skip
        for number in range(21):
            choice = ("2", "1", "tie")[number % 3] if number != 4 else "skip"
            place = {"1": ".choose >> nth=0", "2": ".choose >> nth=1", "tie": "#tie", "skip": "#skip"}[choice]
            phone.say(choice, lambda place=place: phone.page.tap(place))
            if number == 9:
                phone.undo(lambda: phone.page.tap("#undo"))
                phone.say("1", lambda: phone.page.tap(".choose >> nth=0"))
        assert phone.page.inner_text("#count") == "20 votes"
        assert desk.problems == phone.problems == []
    assert export(box.store.path, str(tmp_path / "inbox"))["pairs"] == 40
    found = {}
    for row in pd.concat(map(pd.read_parquet, (tmp_path / "inbox").glob("*.parquet"))).itertuples():
        better = row.jpg_0 if row.label_0 == 1 else row.jpg_1
        found[row.caption] = "tie" if row.label_0 == 0.5 else hashlib.sha256(better).hexdigest()
    assert found == desk.said | phone.said


@pytest.mark.parametrize("size", [2, 4])
def test_on_a_phone_everything_is_on_the_screen_and_large_enough_for_thumbs(
    tmp_path: Path, browser: Any, size: int
) -> None:
    box = page(tmp_path)
    fill(box.store, 1, size)
    with box.store.writing() as db:
        db.execute("UPDATE sets SET prompt = ?", (HOSTILE + " and a long prompt of many words" * 6,))
    with serving(box) as address:
        device = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
        phone = Person(browser, address, **device)
        boxes = phone.page.eval_on_selector_all(
            ".choose, nav button", "all => all.map(e => { const b = e.getBoundingClientRect();"
            " return [b.left, b.top, b.right, b.bottom] })",
        )  # fmt: skip
        assert len(boxes) == size + 3
        assert all(left >= 0 and top >= 0 and right <= 390 and bottom <= 844 for left, top, right, bottom in boxes)
        assert all(right - left >= 44 and bottom - top >= 44 for left, top, right, bottom in boxes)
        scroll = phone.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert scroll == [390, 844]
        assert phone.shown()[1].startswith(HOSTILE) and phone.page.title() == "Vote"
        if size == 4:
            for place in (2, 0, 3):
                phone.page.tap(f".choose >> nth={place}")
            phone.page.wait_for_function("() => document.getElementById('stage').dataset.state === 'finished'")
        else:
            phone.page.tap(".enlarge >> nth=1")
            assert phone.page.inner_text("#which") == "Picture 2"
            phone.page.tap("#other")
            assert phone.page.inner_text("#which") == "Picture 1"
            phone.page.tap("#close")
            assert phone.page.is_visible(".choose >> nth=0") and phone.problems == []


def test_a_vote_without_a_connection_is_sent_when_there_is_one(box: VotePage, browser: Any) -> None:
    with serving(box) as address:
        desk = Person(browser, address)
        desk.page.context.set_offline(True)
        pair = desk.shown()[0]
        desk.page.keyboard.press("1")
        desk.page.wait_for_function("() => document.getElementById('note').textContent.startsWith('No connection')")
        assert desk.shown()[0] == pair
        desk.page.context.set_offline(False)
        desk.wait(pair)
        assert desk.page.inner_text("#count") == "1 vote"
