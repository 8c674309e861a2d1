"""lpo summary: the figures of metrics/, the table of README.md, and docs/figures.json, which texts quote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.commands import summary
from lpo.errors import LpoError
from lpo.report.figures import headline, quoted, table

RATE = {"value": 0.7, "low": 0.6512, "high": 0.75, "prompts": 1400, "ties": 0.1}
LOWER = {"value": 0.6, "low": 0.55, "high": 0.65, "prompts": 1400, "ties": 0.0}
RIGHT = {"base": 0.5, "tuned": 0.55, "difference": 0.05, "low": -0.01, "high": 0.11}
AXES = ("overall", "alignment", "aesthetics")


def metrics(**changes: Any) -> dict[str, Any]:
    bins = [{"t_low": 100 * k, "t_high": 100 * k + 100, "value": 0.8 - k / 20, "low": 0.1, "high": 0.9}
            for k in range(5)]  # fmt: skip
    return {
        "evaluate": {
            "win_rate": dict.fromkeys(AXES, RATE), "win_rate_default_cfg": {"overall": LOWER},
            "all_correct": RIGHT | {"by_category": {"pair": RIGHT}, "only_tuned": 65, "only_base": 10},
            "by_category": {"pair": dict.fromkeys(AXES, RATE)},
        },
        "reward": {"accuracy": {"mean": 0.714, "by_timestep": bins, "by_category": {"pair": RATE}}},
        "filter": {"by_split": {"train": {"input": 2000, "kept": 500, "dropped": 1490, "quarantined": 10}}},
    } | changes  # fmt: skip


def judged() -> dict[str, Any]:
    judges = {name: {"base": 20.1, "tuned": 20.9, "win_rate": RATE | {"value": value}}
              for name, value in (("pickscore", 0.7), ("hps_v2", 0.44))}  # fmt: skip
    rates = {"win_rate": {"overall": RATE}, "win_rate_default_cfg": {"overall": LOWER}}
    return metrics(evaluate={**rates, "judge": "pickscore", "judges": judges})


def write(found: dict[str, Any]) -> None:
    Path("metrics").mkdir(exist_ok=True)
    for stage, content in found.items():
        Path(f"metrics/{stage}.json").write_text(json.dumps(content))


def run(*words: str) -> str:
    result = CliRunner().invoke(cli.app, ["summary", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_text_shows_what_is_there(project: Path) -> None:
    write(metrics())
    Path("data/report").mkdir(parents=True)
    Path("data/report/index.html").touch()
    out = run()
    assert "1,400 held-out prompts" in out
    assert re.findall(r"^  (\w+) +70\.0%  \(65\.1% to 75\.0%\)$", out, re.MULTILINE) == list(AXES)
    assert "All-correct rate: 50.0% before, 55.0% after, +5.0 points (−1.0 to +11.0)" in out
    assert "t    0-100   80.0%  (10.0% to 90.0%)" in out
    assert "2,000 read, 500 kept, 1,490 dropped, 10 quarantined" in out
    assert out.endswith("Report: data/report/index.html\n")


def test_nothing_to_show_is_an_error_that_says_what_to_run(project: Path) -> None:
    with pytest.raises(LpoError, match="no figures yet"):
        summary.run()
    write({"filter": metrics()["filter"]})
    assert "500 kept" in run()
    for arguments in ({"markdown": True}, {"save": Path("figures.json")}):
        with pytest.raises(LpoError, match="not been evaluated"):
            summary.run(**arguments)
    assert not Path("figures.json").exists()


def test_the_table_by_hand(project: Path) -> None:
    write(metrics())
    assert run("--markdown").splitlines() == [
        "| figure | value | 95% interval |",
        "| --- | --- | --- |",
        "| Win rate over the base, overall | 70.0% | 65.1% to 75.0% |",
        "| Win rate over the base, alignment with the prompt | 70.0% | 65.1% to 75.0% |",
        "| Win rate over the base, aesthetics | 70.0% | 65.1% to 75.0% |",
        "| All-correct rate, change from 50.0% | +5.0 points | −1.0 to +11.0 |",
        "",
        "1,400 held-out prompts. Both models start from the same noise and use the same guidance scale. A tie counts "
        "as half a win. Intervals come from a bootstrap over prompts. Against the base at its best guidance scale, the "
        "tuned model wins 60.0% (55.0% to 65.0%). On 65 images the tuned model alone has everything right, on 10 the "
        "base alone. The reward model ranks 71.4% of held-out pairs correctly, averaged over timesteps. The filter "
        "keeps 500 of 2,000 training pairs (25.0%).",
    ]


def test_every_judge_has_a_row_and_the_first_one_only_once() -> None:
    rows = table(judged()).splitlines()[2:4]
    assert rows == [
        "| Win rate over the base, overall, by PickScore | 70.0% | 65.1% to 75.0% |",
        "| Win rate over the base, by HPSv2 | 44.0% | 65.1% to 75.0% |",
    ]


def test_saved_figures_give_the_same_table_and_outlive_a_run(project: Path) -> None:
    """The sequence of `make run` and `make test` in small: a run changes metrics/, and no text that quotes figures."""
    write(metrics())
    run("--save", "figures.json")
    saved = json.loads(Path("figures.json").read_text())
    assert table(saved) == table(metrics()) and table(saved) == run("--markdown")
    assert "by_category" not in Path("figures.json").read_text()
    worse = metrics()
    worse["evaluate"]["win_rate"] = dict.fromkeys(AXES, RATE | {"value": 0.4})
    write(worse)
    assert run("--markdown") != table(saved)
    assert json.loads(Path("figures.json").read_text()) == saved == quoted(metrics())


def test_the_dvc_metric_is_flat_and_fits_a_terminal() -> None:
    found = headline(metrics())
    assert found == {"win_rate": 0.7, "alignment": 0.7, "aesthetics": 0.7, "all_correct": 0.05, "reward": 0.714}
    assert headline(judged()) == {"win_rate": 0.7, "pickscore": 0.7, "hps_v2": 0.44, "reward": 0.714}
    assert headline({}) == {}
    assert len("metrics.json") + sum(4 + max(len(name), 6) for name in found) <= 80  # columns of `dvc metrics show`
