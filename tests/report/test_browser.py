"""The report in headless Chromium, as wide as a phone and as a desktop: nothing scrolls sideways, all text is legible.

The page runs no scripts. It is measured from outside, in the iframe of another page.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from support.made_up_run import PARAMS, context, metrics

from lpo.report.page import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
MEASURE = """
const lines = node => { const r = document.createRange(); r.selectNodeContents(node);
  return new Set([...r.getClientRects()].map(box => Math.round(box.top))).size };
const found = {};
for (const frame of document.querySelectorAll('iframe')) {
  const page = frame.contentDocument, root = page.documentElement;
  page.querySelectorAll('details').forEach(d => d.open = true);
  found[frame.width] = {
    page: [root.scrollWidth, root.clientWidth],
    outside: [...page.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > root.clientWidth + 1
      && !e.closest('.wide, pre')).map(e => e.tagName + '.' + e.className),
    plots: [...page.querySelectorAll('figure img')].map(i => [i.clientWidth, i.naturalWidth]),
    tables: [...page.querySelectorAll('.wide')].map(w => [w.clientWidth, w.scrollWidth]),
    broken: [...page.querySelectorAll('td.text')].filter(
      td => lines(td) > td.textContent.trim().split(/[\\s/.:-]+/).length + 1).map(td => td.textContent),
    paper: getComputedStyle(page.body).backgroundColor };
}
document.body.textContent = JSON.stringify(found);
"""

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
]  # fmt: skip


def measured(page: str, folder: Path, *flags: str) -> dict[str, Any]:
    frames = [f'<iframe width="{width}" height="900" srcdoc="{escape(page)}"></iframe>' for width in (390, 1280)]
    file = folder / "frames.html"
    file.write_text(f"{''.join(frames)}<script>onload = () => {{{MEASURE}}}</script>", encoding="utf-8")
    command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1700,1000"]
    ended = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(unescape(re.search(r"<body>(\{.*\})</body>", ended.stdout, re.DOTALL).group(1)))


@pytest.fixture(scope="module")
def page() -> str:
    """With long names: a path without spaces, a category of many words."""
    found = metrics()
    accuracy = found["reward"]["accuracy"]
    name = "a category with a name of many words, as people write them"
    accuracy["by_category"] = {name: accuracy["by_category"].popitem()[1]}
    long = PARAMS["model"] | {"path": "/a/path/without/any/spaces/" + "x" * 120}
    return render_report(context(metrics=found, params=PARAMS | {"model": long}))


@pytest.fixture(scope="module")
def light(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measured(page, tmp_path_factory.mktemp("light"), "--blink-settings=preferredColorScheme=1")


@pytest.mark.parametrize("width", ["390", "1280"])
def test_the_page_does_not_scroll_sideways(light: dict[str, Any], width: str) -> None:
    scroll, client = light[width]["page"]
    assert scroll == client and int(width) - 20 <= client <= int(width)
    assert light[width]["outside"] == []


def test_tables_scroll_inside_their_card_on_a_phone(light: dict[str, Any]) -> None:
    assert any(scroll > client for client, scroll in light["390"]["tables"])
    assert all(client < 390 for client, _ in light["390"]["tables"])


@pytest.mark.parametrize(("width", "points"), [("390", 9), ("1280", 10)])
def test_text_in_plots_is_at_least_11_pixels_high(light: dict[str, Any], width: str, points: int) -> None:
    sizes = [points / 0.75 * shown / natural for shown, natural in light[width]["plots"]]  # 1 pixel is 0.75 points
    assert len(sizes) >= 5 and min(sizes) >= 11


@pytest.mark.parametrize("width", ["390", "1280"])
def test_names_of_rows_break_between_words_only(light: dict[str, Any], width: str) -> None:
    assert light[width]["broken"] == []


def test_the_page_is_dark_for_readers_who_prefer_it(page: str, light: dict[str, Any], tmp_path: Path) -> None:
    dark = measured(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    for width in ("390", "1280"):
        paper = [sum(map(int, re.findall(r"\d+", found[width]["paper"])[:3])) / 3 for found in (light, dark)]
        assert paper[0] > 200 and paper[1] < 60
        assert dark[width]["page"][0] == dark[width]["page"][1]
