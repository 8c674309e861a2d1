import base64
import io
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.made_up_run import HOSTILE, PARAMS, context, metrics, people, png, results

from lpo.evaluate.metrics import evaluate_results
from lpo.report import plots
from lpo.report.data_section import thumbnail
from lpo.report.page import render_report
from lpo.report.people_words import of_whom
from lpo.report.pictures import choose
from lpo.report.sections import TUNE_CURVES, timesteps


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
        if tag not in ("meta", "img", "br", "source"):
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
    shown = page.replace("http://127.0.0.1:8000/v1", "")  # evaluate.vlm.url, in the table of parameters
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<link|<iframe|<script", shown)
    for tag, attributes in Reader(page).tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "img":
            assert attributes["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        if tag == "a":
            assert attributes["href"].startswith(("#", "../filtered/", "MODEL_CARD.md"))
    for figure in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page):
        svg = base64.b64decode(figure).decode()
        assert not re.search(r'(href|src)="(?!#)', svg)


def test_links_lead_to_sections(page):
    tags = Reader(page).tags
    ids = {attributes["id"] for tag, attributes in tags if tag == "section"}
    links = {attributes["href"][1:] for tag, attributes in tags if tag == "a" and attributes["href"][0] == "#"}
    assert ids == links and len(ids) == 8


def test_same_input_same_bytes(page):
    assert render_report(context()) == page


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
    cards = re.findall(r'<div class="card">.*?</div></div></div>', page)  # of images, not of pairs
    assert {card.count("<img") for card in cards} == {2}
    assert "the base usually runs at the same one" in page and "there is one comparison" in page
    assert "usual guidance</td>" not in page


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
        metrics={}, results=None, reward_history=None, tune_history=None, contract=None, examples=None,
        timings={}, artifacts=[], code=[],
    )
    page = render_report(nothing)
    assert "There is no result yet" in page
    assert page.count('class="missing"') >= 16


def test_what_people_said_is_told_where_somebody_voted(quick):
    nobody = Reader(render_report(context())).words
    assert "What people said" not in nobody and "No people were asked." in nobody
    reader = Reader(render_report(context(metrics=metrics() | {"people": people()})))
    assert ("a", {"href": "#people"}) in reader.tags and ("section", {"id": "people"}) in reader.tags
    assert reader.open == [] and "No people were asked." not in reader.words
    for words in ("64.0%", "55.0% to 72.0%", "53.0% to 75.0%", "better", "alpha 0.41", f"{HOSTILE}no votes"):
        assert words in reader.words
    team = Reader(render_report(context(metrics=metrics() | {"people": people(5, simulated=5)}))).words
    assert "All of the voters are simulated annotators: programs, not people." in team
    assert of_whom({"votes": 1, "voters": 2, "prompts": 1200}) == "1 vote of 2 voters on 1,200 prompts"


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
    svg = base64.b64decode(one.wide.split(",")[1]).decode()
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
    for words in ("<h2>Judges</h2>", "<td class=\"text\">PickScore</td>", "<h3>GenEval</h3>",
                  "held-out prompts by PickScore (95%", "3 prompts of the file were skipped",
                  "The largest gains in PickScore"):  # fmt: skip
        assert words in page, words
    assert "What changed" not in page and "all right" not in page and "<script>" not in page


def test_shares_of_pairs_are_of_the_training_split(page):
    assert "200 of 800 training pairs were kept (25.0%)" in page
    assert '<b>25.0%</b><span>training pairs kept</span><span>of 800</span>' in page
    assert "40.0%" not in page  # of all splits, held-out pairs included, which nothing filters


def test_pairs_are_shown_with_their_images_and_dropped_ones_with_their_reason(page):
    kept, dropped = page.partition("<h3>Dropped pairs</h3>")[::2]
    kept = kept.partition("<h3>Kept pairs</h3>")[2]
    for part in (kept, dropped):
        for shade, name in ((7, "rejected"), (9, "chosen")):  # label_1 is the larger one
            assert f'<img src="{plots.picture_uri(thumbnail(png(shade)))}" alt="{name}: ' in part
        assert "gaps: aesthetic +0.100, clip −0.200, vqa +0.000" in part
    assert f"vqa +0.000<br>{escape(HOSTILE)}</p>" in dropped and "vqa +0.000</p>" in kept


def test_large_images_of_pairs_are_shown_small_and_small_ones_as_they_are():
    def size(side):
        buffer = io.BytesIO()
        Image.new("RGB", (2 * side, side)).save(buffer, "PNG")
        return Image.open(io.BytesIO(thumbnail(buffer.getvalue()))).size

    assert size(16) == (32, 16) and size(1000) == (192, 96)


def test_the_page_says_when_where_and_how_long_each_stage_ran(page, quick):
    assert '<td class="text">tune</td><td>1.5</td><td></td><td>2026-01-02</td>' in page and "On GPUs" not in page
    gpu = {"gpus": 4, "seconds": 90.0, "joules": 3.6e6}
    params = PARAMS | {"report": PARAMS["report"] | {"gpu_hour_price": 20.0}}
    timings = {"tune": {"seconds": 90.0, "gpu": gpu}, "filter": {"seconds": 30.0, "gpu": "broken"}}
    priced = render_report(context(timings=timings, params=params))
    assert "On GPUs: 0.10 GPU-hours, 1.00 kWh, cost 2.00." in priced
    assert "No stage ran on this machine" in render_report(context(timings={}))


def test_the_page_says_how_to_draw_with_the_model(page):
    assert 'lpo generate &quot;a cat left of a taxi at night&quot; --lora data/tuned' in page
    assert "pipe.load_lora_weights(" in page


@pytest.mark.parametrize("layout", [plots.WIDE, plots.NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("draw", [
    lambda layout: plots.training_curves.__wrapped__(layout, [{"x": 1} | dict.fromkeys(TUNE_CURVES, 0.5)], "x",
                                                     TUNE_CURVES),
    lambda layout: plots.by_timestep.__wrapped__(layout, [{"t": 1} | dict.fromkeys(plots.BY_TIMESTEP, 0.5)]),
], ids=["curves", "timesteps"])  # fmt: skip
def test_titles_do_not_overlap_and_stay_on_the_page(layout, draw):
    with plots.rc_context(plots.STYLE | {"font.size": layout.text, "axes.titlesize": layout.text}):
        figure = draw(layout)
        figure.canvas.draw()
        boxes = [axes._left_title.get_window_extent() for axes in figure.axes if axes.get_visible()]
    assert len(boxes) >= 4
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_warnings_of_the_tuning_are_sentences(quick):
    found = metrics()
    found["tune"]["warnings"] = [f"rollout 2: drift {HOSTILE}"]
    assert f"<h3>Warnings</h3>\n<p>rollout 2: drift {escape(HOSTILE)}</p>" in render_report(context(metrics=found))


def test_labels_with_dollar_signs_are_text():
    rows = [("$x^$ and $", {"value": 0.4, "low": 0.3, "high": 0.5})]
    assert plots.forest(rows) != plots.forest([("", rows[0][1])])
    plots.mpcf_bars(1, {"$\\frac$": 2})
