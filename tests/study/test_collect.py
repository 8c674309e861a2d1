"""The stage that turns a study's cells into a table and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lpo.errors import LpoError
from lpo.study import collect


def write_cell(cells: Path, arm: str, question: str, changes: dict[str, Any], better: int) -> None:
    """A cell of ten prompts: the base's pictures, and an adapter that betters the first so many."""
    folder = cells / f"{arm}-42"
    folder.mkdir(parents=True)
    frames = [
        pd.DataFrame({"prompt": [f"p{i}" for i in range(10)], "seed": range(10)}).assign(
            snapshot=snapshot, rollout=8, prompts=256 * (snapshot + 1), seconds=70.0 + better,
            alignment=0.5, aesthetic=0.5, utility=[float(snapshot == 0 and i < better) for i in range(10)],
        )
        for snapshot in (-1, 0)
    ]  # fmt: skip
    pd.concat(frames).to_parquet(folder / "results.parquet")
    bins = [{"t_low": 0, "t_high": 100, "value": 0.7, "low": 0.6, "high": 0.8}]
    (folder / "reward.json").write_text(json.dumps({"steps": 10, "accuracy": {"by_timestep": bins}}))
    (folder / "summary.json").write_text(json.dumps({"reward_step_seconds": 0.5}))
    about = {"arm": arm, "question": question, "seed": 42, "changes": changes, "seeds_of": "tuning", "revision": "abc"}
    (folder / "cell.json").write_text(json.dumps(about))


def test_of_several_snapshots_that_were_not_validated_none_is_chosen(tmp_path: Path) -> None:
    write_cell(tmp_path, "lpo", "reference", {}, 5)
    file = tmp_path / "lpo-42" / "results.parquet"
    frame = pd.read_parquet(file)
    assert (collect.results(file.parent)["validation"] == 0).all(), "of one there is nothing to choose"
    pd.concat([frame, frame[frame["snapshot"] == 0].assign(snapshot=1)]).to_parquet(file)
    with pytest.raises(LpoError, match="never validated"):
        collect.results(file.parent)


@pytest.mark.parametrize("name", ["ablations", "methods"])
def test_arms_are_compared_at_what_their_study_says(
    name: str, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    cells = tmp_path / name
    write_cell(cells, "lpo", "reference", {"tune.prompts": 256}, 5)
    write_cell(cells, "beta_20", "beta", {"tune.beta": 20.0}, 10)
    write_cell(cells, "vfe_3", "vfe", {"reward.guidance_scale": 3.0}, 0)
    page = collect.run(cells, tmp_path / "out").read_text()
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(table["equal"]) == ({"prompts"} if name == "ablations" else {"seconds", "prompts"})
    assert ("Every arm trains on as many prompts" in page) == (name == "ablations")
    assert ("Every arm trains on the same clock" in page) == (name == "methods")
    utility = table[(table["axis"] == "utility") & (table["equal"] == "prompts")].set_index(["question", "arm"])
    assert utility.loc[("beta", "beta_20"), "gain_difference_value"] == 0.5
    assert utility.loc[("vfe", "vfe_3"), "gain_difference_value"] == -0.5
    assert utility.loc[("beta", "lpo"), "reward_seconds"] == 5.0


def test_the_rewards_that_were_trained_are_shown(tmp_path: Path) -> None:
    write_cell(tmp_path, "lpo", "reference", {}, 1)
    write_cell(tmp_path, "beta_20", "beta", {"tune.beta": 20.0}, 1)
    write_cell(tmp_path, "mpcf_1", "mpcf", {"filter.strategy": 1}, 1)
    write_cell(tmp_path, "spo", "methods", {"tune.method": "spo", "tune.reward": "data/spm"}, 1)
    folders = sorted(tmp_path.iterdir())
    about = [json.loads((folder / "cell.json").read_text()) for folder in folders]
    assert [row["reward"] for row in collect.accuracies(folders, about)] == ["lpo", "mpcf_1", "spo"]


def test_a_study_without_its_reference_is_refused(tmp_path: Path) -> None:
    write_cell(tmp_path, "beta_20", "beta", {}, 1)
    with pytest.raises(LpoError, match="no cell of the arm lpo"):
        collect.run(tmp_path, tmp_path / "out")
