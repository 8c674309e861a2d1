import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lpo.evaluate.metrics import evaluate_results
from lpo.report import plots
from lpo.report.page import Artifact, ReportContext, headline, render_report
from lpo.report.pictures import choose
from lpo.report.sections import timesteps

HOSTILE = "<script>alert(1)</script> & \"a' cat"
CATEGORIES = ("single", "pair", "count", HOSTILE)
PARAMS = {
    "seed": 7,
    "model": {"family": "sd", "path": "data/base"},
    "dataset": {"source": "simulated"},
    "filter": {
        "max_quarantined": 0.01,
        "strategy": "2",
        "strategies": {"2": {"aesthetic": -0.5, "clip": 0.0, "vqa": 0.0}},
        "ties": {"aesthetic": 0.2, "clip": 0.03, "vqa": 0.07},
    },
    "tune": {
        "method": "lpo", "num_inference_steps": 20, "guidance_scale": 3.0, "beta": 500.0,
        "threshold": {"low": 0.35, "high": 0.5},
    },
    "evaluate": {"num_inference_steps": 20, "guidance_scale": 3.0, "base_guidance_scale": 1.5},
    "report": {"examples": 3},
}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 80, 160)).save(buffer, "PNG")
    return buffer.getvalue()


def results(prompts: int = 16) -> pd.DataFrame:
    """Made up: the tuned model gains i - 4 in utility on prompt i."""
    rows = []
    for i in range(prompts):
        prompt = HOSTILE if i == 0 else f"prompt {i}"
        for place, model in enumerate(("base", "base_matched", "tuned")):
            gain = i - 4.0 if model == "tuned" else 0.0
            rows.append(
                {"prompt": prompt, "category": CATEGORIES[i % 4], "seed": i, "model": model, "png": png(i * 3 + place),
                 "all_correct": gain > 0, "alignment": 1.0 if gain > 0 else 0.5, "aesthetic": 5 + gain / 8,
                 "utility": gain, "clip": 0.2 + gain / 90, "vqa": 0.6, "aesthetic_score": 5 + gain / 9, "lrm": gain}
            )  # fmt: skip
    return pd.DataFrame(rows)


def metrics() -> dict:
    bins = [{"t_low": t, "t_high": t + 250, "value": 0.8 - t / 4000, "low": 0.7 - t / 4000, "high": 0.85 - t / 4000}
            for t in range(0, 1000, 250)]  # fmt: skip
    counts = {"input": 1000, "kept": 400, "dropped": 595, "quarantined": 5, "dropped_by": {"clip": 300, HOSTILE: 450}}
    by_category = {HOSTILE: {"value": 0.7, "low": 0.6, "high": 0.8, "pairs": 100}}
    validation = [{"rollout": 10, "reward": 1.5}, {"rollout": 20, "reward": 1.75}]
    return {
        "filter": counts,
        "reward": {
            "accuracy": {"mean": 0.71, "by_timestep": bins, "by_category": by_category, "by_difference": by_category}
        },
        "tune": {"prompts": 2000, "pairs": 9000, "updates": 140, "validation": validation},
        "evaluate": evaluate_results(results(), ["emoji"], resamples=200),
    }


def context(**changes) -> ReportContext:
    steps = [
        {"t": 951, "seen": 8, "kept": 4, "gap": 0.9, "clipped": 0.1, "implicit_accuracy": 0.6},
        {"t": 1, "seen": 8, "kept": 0, "gap": 0.1},
    ]
    history = [{"rollout": i, "loss": 0.7 - i / 100, "kept": 0.3, "by_timestep": steps} for i in range(5)]
    artifact = Artifact("dataset", f"data/{HOSTILE}", "0123abcd.dir", 12345678)
    given = {
        "params": PARAMS,
        "metrics": metrics(),
        "results": results(),
        "reward_history": [{"step": 10 * i, "loss": 0.7 - i / 100} for i in range(5)],
        "tune_history": history,
        "contract": {"success": True, "note": HOSTILE},
        "artifacts": [artifact],
        "code": [artifact],
        "revision": "deadbeef",
    }
    return ReportContext(**(given | changes))


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(context())


@pytest.fixture
def quick(monkeypatch):
    """No figures are drawn: for tests that are about words."""
    for name in ("accuracy_by_timestep", "by_timestep", "training_curves", "forest", "mpcf_bars"):
        monkeypatch.setattr(plots, name, lambda *_: "data:,")


def test_tags_are_balanced_and_no_data_became_markup(page):
    reader = Reader(page)  # asserts the balance
    assert reader.open == []
    assert "script" not in {tag for tag, _ in reader.tags}
    assert HOSTILE in reader.words
    assert any(attributes.get("alt", "").endswith(HOSTILE) for _, attributes in reader.tags)


def test_every_string_of_data_is_escaped(page):
    assert "<script" not in page
    # caption, category (5 tables), rule, contract, 2 paths: all of them found, all of them escaped
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp;") > 10


def test_nothing_is_loaded_from_outside(page):
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe|<script", page)
    for tag, attributes in Reader(page).tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "img":
            assert attributes["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        if tag == "a":
            assert attributes["href"].startswith(("#", "../filtered/"))
    for figure in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page):
        svg = base64.b64decode(figure).decode()
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_links_lead_to_sections(page):
    tags = Reader(page).tags
    ids = {attributes["id"] for tag, attributes in tags if tag == "section"}
    links = {attributes["href"][1:] for tag, attributes in tags if tag == "a" and attributes["href"][0] == "#"}
    assert ids == links and len(ids) == 7


def test_same_input_same_bytes(page):
    assert render_report(context()) == page


def test_headline_follows_the_interval():
    def said(low, high):
        return headline({"win_rate": {"overall": {"value": 0.6, "low": low, "high": high, "prompts": 400}}})

    assert said(0.55, 0.65).startswith("Tuning made the model better: it wins 60.0% of 400 held-out prompts")
    assert "95% interval 55.0% to 65.0%" in said(0.55, 0.65)
    assert "no difference" in said(0.45, 0.75)
    assert "worse" in said(0.3, 0.45)
    assert "no result" in headline(None)


def test_examples_are_what_they_say():
    chosen = choose(results(), 3, seed=7)
    assert chosen["best"] == [("prompt 15", 15), ("prompt 14", 14), ("prompt 13", 13)]
    assert chosen["worst"] == [(HOSTILE, 0), ("prompt 1", 1), ("prompt 2", 2)]
    assert len(set(chosen["random"])) == 3
    assert chosen["random"] == choose(results().sample(frac=1, random_state=0), 3, seed=7)["random"]
    others = [choose(results(), 3, seed=seed)["random"] for seed in range(5)]
    assert len({tuple(other) for other in others}) > 1


def test_every_example_shows_three_pictures_of_one_prompt(page):
    shown = re.findall(r'<div class="card"><p>prompt 15</p>.*?</div></div></div>', page)
    assert shown
    wanted = [plots.picture_uri(png(15 * 3 + place)) for place in range(3)]
    assert [re.findall(r'src="([^"]+)"', card) for card in shown] == [wanted] * len(shown)
    assert re.findall(r"<b>(\w+)</b>.*?CFG ([\d.]+)", shown[0]) == [("base", "1.5"), ("base", "3"), ("tuned", "3")]


def test_one_base_picture_where_both_scales_are_the_same(quick):
    params = PARAMS | {"evaluate": PARAMS["evaluate"] | {"base_guidance_scale": 3.0}}
    found = metrics()
    found["evaluate"]["win_rate_default_cfg"] = found["evaluate"]["win_rate"]
    page = render_report(context(params=params, metrics=found))
    cards = re.findall(r'<div class="card">.*?</div></div></div>', page)
    assert {card.count("<img") for card in cards} == {2}
    assert "usually runs at this guidance scale" in page and "there is one comparison" in page
    assert "its usual guidance scale</td>" not in page


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"metrics": {k: v for k, v in metrics().items() if k != "reward"}}, "metrics/reward.json"),
        ({"metrics": {k: v for k, v in metrics().items() if k != "evaluate"}}, "metrics/evaluate.json"),
        ({"metrics": {k: v for k, v in metrics().items() if k != "filter"}}, "metrics/filter.json"),
        ({"metrics": {k: v for k, v in metrics().items() if k != "tune"}}, "metrics/tune.json"),
        ({"results": None}, "data/evaluation/results.parquet"),
        ({"reward_history": None}, "data/reward/history.json"),
        ({"tune_history": None}, "data/tuned/history.json"),
        ({"contract": None}, "data/filtered/summary.json"),
    ],
)
def test_a_missing_file_is_named_at_the_top_and_in_its_section(quick, page, changes, named):
    note = f'<p class="missing">Missing: {named}.'
    assert note not in page
    header, _, rest = render_report(context(**changes)).partition("</header>")
    assert note in header and note in rest


def test_missing_figures_are_named(quick):
    found = metrics()
    del found["evaluate"]["all_correct"], found["evaluate"]["scorers"], found["reward"]["accuracy"]["by_category"]
    page = render_report(context(metrics=found, tune_history=[{"rollout": 0, "loss": 0.7}], artifacts=[]))
    for name in ("all_correct in metrics/evaluate.json", "scorers in metrics/evaluate.json",
                 "accuracy.by_category in metrics/reward.json", "by_timestep in data/tuned/history.json",
                 "hashes of data in dvc.lock"):  # fmt: skip
        assert f"Missing: {name}." in page


def test_page_without_anything_still_says_what_is_missing(quick):
    nothing = context(
        metrics={}, results=None, reward_history=None, tune_history=None, contract=None, artifacts=[], code=[]
    )
    page = render_report(nothing)
    assert "There is no result yet" in page
    assert page.count('class="missing"') >= 16


def test_timesteps_weigh_by_what_the_means_are_of():
    late = {"t": 51, "seen": 10, "kept": 1, "gap": 1.0, "clipped": 1.0}
    later = {"t": 51, "seen": 30, "kept": 9, "gap": 2.0, "clipped": 0.0}
    nothing = {"t": 1, "seen": 10, "kept": 0, "gap": 0.2}
    first, second = timesteps([{"by_timestep": [late, nothing]}, {"by_timestep": [later]}])
    assert first == {"t": 1, "kept": 0.0, "gap": 0.2}
    assert second == pytest.approx({"t": 51, "kept": 10 / 40, "gap": (10 + 60) / 40, "clipped": 1 / 10})


def test_figures_depend_on_their_figures_only():
    rows = metrics()["reward"]["accuracy"]["by_timestep"]
    one = plots.accuracy_by_timestep(rows)
    plots.forest([("a", {"value": 0.4, "low": 0.3, "high": 0.5})])
    assert plots.accuracy_by_timestep(rows) == one
    moved = [row | {"value": row["value"] - 0.01} for row in rows]
    assert plots.accuracy_by_timestep(moved) != one
    svg = base64.b64decode(one.split(",")[1]).decode()
    assert "prefers-color-scheme: dark" in svg and "dc:date" not in svg
    for light in plots.DARK:  # the colours that the dark style swaps are written the way it looks for them
        assert re.search(rf'style="[^"]*(fill|stroke): {light}', svg), light


def test_pictures_survive_the_page(page):
    first = re.search(r"data:image/png;base64,([\w+/=]+)", page).group(1)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(first)))).shape == (4, 4, 3)


def judged() -> pd.DataFrame:
    """Made up: judged by PickScore and GenEval; the tuned model gains i - 4 in PickScore on prompt i."""
    frame = results()[["prompt", "category", "seed", "model", "png"]].copy()
    gain = (frame["seed"] - 4.0) * (frame["model"] == "tuned")
    return frame.assign(pickscore=20 + gain, geneval=(gain > 0).astype(float), lrm=gain)


def test_judges_of_real_pictures_have_a_section_of_their_own():
    frame = judged()
    found = metrics() | {"evaluate": evaluate_results(frame, ["pickscore", "geneval"], 100) | {"prompts_left_out": 3}}
    page = render_report(context(results=frame, metrics=found))
    assert "by PickScore (95% interval" in headline(found["evaluate"])
    for words in ("<h2>Judges</h2>", "<td class=\"text\">PickScore</td>", "<h3>GenEval</h3>", "The reward itself",
                  "3 prompts of the file were left out", "The largest gains in PickScore"):  # fmt: skip
        assert words in page, words
    assert "What changed" not in page and "all right" not in page and "<script>" not in page
