"""What turns a study's evidence into a table, a page and its part of docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.study import collect, evidence, markdown


@pytest.fixture
def studies(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the declared studies and no evidence."""
    (tmp_path / "studies").mkdir()
    (tmp_path / collect.DECLARED).write_text((repository / collect.DECLARED).read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_cell(study: str, arm: str, question: str, changes: dict[str, Any], better: int, key: str = "k") -> None:
    """A cell of ten prompts: the base's images, and an adapter that is better in the first `better` of them."""
    frames = [
        pd.DataFrame({"prompt": [f"p{i}" for i in range(10)], "seed": range(10)}).assign(
            snapshot=snapshot, rollout=8, prompts=256 * (snapshot + 1), seconds=70.0 + better,
            alignment=0.5, aesthetic=0.5, all_correct=False,
            utility=[float(snapshot == 0 and i < better) for i in range(10)],
        )
        for snapshot in (-1, 0)
    ]  # fmt: skip
    bins = [{"t_low": 0, "t_high": 100, "value": 0.7, "low": 0.6, "high": 0.8}]
    about = {
        "arm": arm, "question": question, "seed": 42, "changes": changes, "seeds_of": "tuning", "revision": "abc",
        "key": key, "summary": {"reward_step_seconds": 0.5},
    }  # fmt: skip
    reward = {"steps": 10, "accuracy": {"by_timestep": bins}}
    evidence.add(study, f"{arm}-42", about, pd.concat(frames), reward)


def test_a_cell_that_is_added_again_takes_the_place_of_the_old_one(studies: Path) -> None:
    add_cell("quick", "lpo", "reference", {}, 5)
    add_cell("quick", "spo", "methods", {}, 3)
    add_cell("quick", "lpo", "reference", {}, 7, key="new")
    held = evidence.read("quick")
    assert sorted(held.cells) == ["lpo-42", "spo-42"] and held.cells["lpo-42"]["key"] == "new"
    assert held.of("lpo-42").query("snapshot == 0")["utility"].sum() == 7
    assert len(held.results) == 40
    assert len(held.rewards) == 1, "cells that share a reward share its metrics"
    assert held.reward_of("spo-42") == held.reward_of("lpo-42") != None  # noqa: E711


def test_a_cell_that_was_cut_off_does_not_count(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_cell("quick", "lpo", "reference", {}, 5)
    with monkeypatch.context() as patched:
        patched.setattr(evidence, "write_parquet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_cell("quick", "lpo", "reference", {}, 7)
    assert evidence.read("quick").cells == {}


def test_of_several_snapshots_that_were_not_validated_none_is_chosen(studies: Path) -> None:
    add_cell("quick", "lpo", "reference", {}, 5)
    held = evidence.read("quick")
    assert (held.of("lpo-42")["validation"] == 0).all(), "of one there is nothing to choose"
    more = held.results[held.results["snapshot"] == 0].assign(snapshot=1)
    held = evidence.Evidence(held.cells, held.rewards, pd.concat([held.results, more]))
    with pytest.raises(LpoError, match="never validated"):
        held.of("lpo-42")


@pytest.mark.parametrize("name", ["ablations", "methods"])
def test_arms_are_compared_at_what_their_study_says(name: str, studies: Path) -> None:
    add_cell(name, "lpo", "reference", {"tune.prompts": 256}, 5)
    add_cell(name, "beta_20", "beta", {"tune.beta": 20.0}, 10)
    add_cell(name, "vfe_3", "vfe", {"reward.guidance_scale": 3.0}, 0)
    page = collect.run(name, studies / "out").read_text()
    table = pd.read_csv(studies / "out" / "table.csv")
    assert set(table["equal"]) == ({"prompts"} if name == "ablations" else {"seconds", "prompts"})
    assert ("Every arm trains on as many prompts" in page) == (name == "ablations")
    assert ("Every arm trains on the same clock" in page) == (name == "methods")
    utility = table[(table["axis"] == "utility") & (table["equal"] == "prompts")].set_index(["question", "arm"])
    assert utility.loc[("beta", "beta_20"), "gain_difference_value"] == 0.5
    assert utility.loc[("vfe", "vfe_3"), "gain_difference_value"] == -0.5
    assert utility.loc[("beta", "lpo"), "reward_seconds"] == 5.0


def test_a_study_writes_its_part_of_the_results_and_nothing_else(studies: Path) -> None:
    add_cell("ablations", "lpo", "reference", {}, 5)
    add_cell("ablations", "beta_20", "beta", {"tune.beta": 20.0}, 10)
    collect.RESULTS.parent.mkdir()
    collect.RESULTS.write_text("# Results\n<!-- ablations -->\nold\n<!-- /ablations -->\nend\n")
    collect.run("ablations", studies / "out")
    text = collect.RESULTS.read_text()
    assert text.startswith("# Results\n") and text.endswith("\nend\n") and "old" not in text
    assert "| beta 20 | +0.500 (" in text and "revision abc" in text
    collect.run("ablations", studies / "out")
    assert collect.RESULTS.read_text() == text


def test_comments_that_are_not_there_twice_are_not_written_between() -> None:
    assert markdown.put("text", "methods", "part") == "text"
    with pytest.raises(LpoError, match="must be there once"):
        markdown.put("<!-- methods -->", "methods", "part")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["methods", "trials", "ablations", "default", "guidance", "others", "few", "hacking"])
def test_the_committed_results_are_those_of_the_committed_evidence(
    name: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    _, found = collect.collect(name)
    titles = {question: about["title"] for question, about in found.declared["questions"].items()}
    text = collect.RESULTS.read_text(encoding="utf-8")
    assert f"<!-- {name} -->" in text
    assert markdown.put(text, name, collect.PARTS[name](found, titles)) == text


def test_the_rewards_that_were_trained_are_shown(studies: Path) -> None:
    add_cell("quick", "lpo", "reference", {}, 1)
    add_cell("quick", "beta_20", "beta", {"tune.beta": 20.0}, 1)
    add_cell("quick", "mpcf_1", "mpcf", {"filter.strategy": 1}, 1)
    add_cell("quick", "spo", "methods", {"tune.method": "spo", "tune.reward": "data/spm"}, 1)
    shown = [row["reward"] for row in collect.accuracies(evidence.read("quick"))]
    assert sorted(shown) == ["lpo", "mpcf_1", "spo"]


def test_trials_are_listed_with_the_validation_that_chooses(studies: Path) -> None:
    for arm, better in (("lpo", 5), ("nft_beta_1e-4_lr_3e-4", 8)):
        add_cell("trials", arm, "trials", {}, better)
    collect.RESULTS.parent.mkdir()
    collect.RESULTS.write_text("<!-- trials -->\n<!-- /trials -->\n")
    collect.run("trials", studies / "out")
    lines = collect.RESULTS.read_text().splitlines()
    assert lines[3].startswith("| lpo | ") and "| +0.500 | 256 |" in lines[3] and "| +0.800 | 256 |" in lines[4]


def test_a_study_without_its_reference_is_refused(studies: Path) -> None:
    add_cell("quick", "beta_20", "beta", {}, 1)
    with pytest.raises(LpoError, match="no cell of the arm lpo"):
        collect.run("quick", studies / "out")


def test_snapshots_of_every_arm_are_listed_by_their_prompts(studies: Path) -> None:
    add_cell("default", "lpo", "reference", {}, 5)
    add_cell("default", "four_times", "long", {"tune.prompts": 1024}, 8)
    collect.RESULTS.parent.mkdir()
    collect.RESULTS.write_text("<!-- default -->\n<!-- /default -->\n")
    collect.run("default", studies / "out")
    lines = collect.RESULTS.read_text().splitlines()
    assert lines[3].startswith("| four times | 42 | 256 | ") and lines[3].count("+0.800 (") == 1
    assert lines[4].startswith("| lpo | 42 | 256 | ") and "| 75.0% (" in lines[4] and "10 images a seed." in lines[6]
