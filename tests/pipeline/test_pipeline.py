"""What a small run of the whole pipeline leaves, and what runs again after it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from support.workspace import REPOSITORY, SMALL, changed, contents, dvc, git, outs, ran, stages
from typer.testing import CliRunner

from lpo import cli

pytestmark = pytest.mark.slow

PAIRS = [
    "ranking_id", "caption", "jpg_0", "jpg_1", "image_0_uid", "image_1_uid", "label_0", "label_1", "has_label",
    "are_different", "num_example_per_prompt", "best_image_uid", "model_0", "model_1", "category", "difference",
]  # fmt: skip
UNREAD = {"best_image_uid", "model_0", "model_1"}  # columns of Pick-a-Pic that no stage reads
KEPT = [
    "ranking_id", "split", "caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "num_example_per_prompt",
    "category", "difference", "gap_aesthetic", "gap_clip", "gap_vqa",
]  # fmt: skip
COLUMNS = {
    "data/prompts.parquet": ["prompt", "split", "category"],
    **{f"data/pairs/{split}-00000.parquet": PAIRS for split in ("train", "validation", "test")},
    "data/left_out.parquet": ["file", "row", "ranking_id", "reason"],
    "data/scores.parquet": ["image_uid", "aesthetic", "clip", "vqa"],
    "data/filtered/kept.parquet": KEPT,
    "data/filtered/dropped.parquet": [*KEPT, "reason"],
    "data/filtered/quarantine.parquet": [
        "ranking_id", "split", "caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "file", "row", "reason",
    ],
    "data/latents/index.parquet": ["image_uid", "shard", "row"],
    "data/latents/captions.parquet": ["caption"],
    "data/evaluation/results.parquet": [
        "prompt", "category", "seed", "model", "png", "all_correct", "alignment", "aesthetic", "utility", "clip", "vqa",
        "aesthetic_score", "lrm",
    ],
}  # fmt: skip
FILES = [
    "data/filtered/data_docs/index.html", "data/filtered/summary.json", "data/latents/moments-00000.npy",
    "data/latents/moments-00001.npy", "data/latents/captions.parquet", "data/latents/space.json",
    "data/reward/reward.safetensors", "data/reward/config.json", "data/reward/history.json",
    "data/tuned/pytorch_lora_weights.safetensors", "data/tuned/README.md", "data/tuned/history.json",
    "data/report/index.html", "data/report/MODEL_CARD.md",
]  # fmt: skip
ROOTS = ("data", "metrics", "plots")
FILES_OF_STAGES = ("dvc.yaml", "studies/dvc.yaml")
STAGES = {
    name: stage
    for file in FILES_OF_STAGES
    for name, stage in yaml.safe_load((REPOSITORY / file).read_text())["stages"].items()
}


def metrics(folder: Path, stage: str) -> Any:
    return json.loads((folder / f"metrics/{stage}.json").read_text())


def ordered(interval: dict[str, float], value: str = "value") -> bool:
    """low <= value <= high, all of them shares."""
    return 0 <= interval["low"] <= interval[value] <= interval["high"] <= 1


# what is there


def test_every_output_of_dvc_yaml_is_there(finished: Path) -> None:
    missing = [name for stage in stages(finished).values() for name in outs(stage) if not (finished / name).exists()]
    assert missing == []


def test_the_readme_of_data_names_every_artifact_and_every_column() -> None:
    readme = (REPOSITORY / "data/README.md").read_text()
    artifacts = [name for stage in STAGES.values() for name in outs(stage) if name.startswith("data/")]
    assert [name for name in artifacts if f"`{name.removeprefix('data/')}" not in readme] == []
    columns = {column for table in COLUMNS.values() for column in table}
    assert columns - set(re.findall(r"\w+", readme)) <= UNREAD


@pytest.mark.parametrize("name", COLUMNS)
def test_tables_have_their_columns(finished: Path, name: str) -> None:
    assert sorted(pd.read_parquet(finished / name).columns) == sorted(COLUMNS[name])


@pytest.mark.parametrize("name", FILES)
def test_files_are_there_and_not_empty(finished: Path, name: str) -> None:
    assert (finished / name).stat().st_size > 0


def test_no_unfinished_file_is_left(finished: Path) -> None:
    assert [name for name in contents(finished, *ROOTS) if Path(name).name.startswith(".") and "git" not in name] == []


def test_pairs_hold_pictures_and_labels_as_pick_a_pic_does(finished: Path) -> None:
    pairs = pd.read_parquet(finished / "data/pairs/train-00000.parquet")
    assert 200 < len(pairs) <= 240 + 4 * 3  # 2 pictures of a prompt make 3 pairs; two equal pictures make none
    assert (pairs["label_0"] + pairs["label_1"] == 1).all() and set(pairs["label_0"]) <= {0.0, 0.5, 1.0}
    assert all(data.startswith(b"\x89PNG") for data in (*pairs["jpg_0"], *pairs["jpg_1"]))
    assert set(pairs["model_0"]) == {"render", "base"}
    best = pairs["image_0_uid"].where(pairs["label_0"] == 1, pairs["image_1_uid"]).where(pairs["label_0"] != 0.5, "")
    assert best.equals(pairs["best_image_uid"].rename(best.name))


def test_every_picture_has_scores_and_every_kept_picture_has_latents(finished: Path) -> None:
    tables = [
        pd.read_parquet(finished / f"data/pairs/{split}-00000.parquet") for split in ("train", "validation", "test")
    ]
    pairs, kept = pd.concat(tables), pd.read_parquet(finished / "data/filtered/kept.parquet")
    scores = pd.read_parquet(finished / "data/scores.parquet")
    latents = pd.read_parquet(finished / "data/latents/index.parquet")
    assert set(scores["image_uid"]) == {*pairs["image_0_uid"], *pairs["image_1_uid"]}
    assert set(latents["image_uid"]) == {*kept["image_0_uid"], *kept["image_1_uid"]}
    rows = sum(len(np.load(file, mmap_mode="r")) for file in (finished / "data/latents").glob("moments-*.npy"))
    assert rows == len(latents)


def test_dropped_and_quarantined_rows_say_why(finished: Path) -> None:
    for name in ("dropped", "quarantine"):
        assert (pd.read_parquet(finished / f"data/filtered/{name}.parquet")["reason"].str.len() > 0).all()


def test_no_prompt_of_a_split_is_in_another(finished: Path) -> None:
    prompts = pd.read_parquet(finished / "data/prompts.parquet")
    wanted = {split: SMALL["dataset"][f"{split}_prompts"] for split in ("train", "validation", "test")}
    assert prompts["split"].value_counts().to_dict() == wanted
    seen = {
        split: {
            *pd.read_parquet(finished / f"data/pairs/{split}-00000.parquet")["caption"],
            *prompts.loc[prompts["split"] == split, "prompt"],
        }
        for split in ("train", "validation", "test")
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    kept = pd.read_parquet(finished / "data/filtered/kept.parquet")
    assert all(set(rows["caption"]) <= seen[split] for split, rows in kept.groupby("split"))


def test_every_model_drew_the_same_held_out_prompts_with_the_same_seeds(finished: Path) -> None:
    results = pd.read_parquet(finished / "data/evaluation/results.parquet")
    prompts = pd.read_parquet(finished / "data/prompts.parquet").query("split == 'test'")["prompt"].tolist()
    drawn = {model: list(zip(rows["prompt"], rows["seed"], strict=True)) for model, rows in results.groupby("model")}
    assert set(drawn) == {"base", "base_matched", "tuned"}
    assert drawn["tuned"] == drawn["base"] == drawn["base_matched"]
    count = SMALL["evaluate"]["prompts"]
    assert [prompt for prompt, _ in drawn["tuned"]] == prompts[:count] and len(prompts) > count
    assert len({seed for _, seed in drawn["tuned"]}) == count


# metrics


def test_metrics_of_the_filter_add_up(finished: Path) -> None:
    found = metrics(finished, "filter")
    for counts in (found, *found["by_split"].values()):
        assert counts["kept"] + counts["dropped"] + counts["quarantined"] == counts["input"]
    for name, table in (("kept", "kept"), ("dropped", "dropped"), ("quarantined", "quarantine")):
        rows = len(pd.read_parquet(finished / f"data/filtered/{table}.parquet"))
        assert found[name] == rows == sum(split[name] for split in found["by_split"].values())
    pairs = sum(len(pd.read_parquet(file)) for file in (finished / "data/pairs").glob("*.parquet"))
    assert found["input"] == pairs


def test_metrics_of_the_reward_model(finished: Path) -> None:
    found = metrics(finished, "reward")["accuracy"]
    bins = found["by_timestep"]
    assert [(part["t_low"], part["t_high"]) for part in bins] == [(100 * k, 100 * k + 100) for k in range(10)]
    assert all(ordered(part) for part in bins)
    assert found["mean"] == pytest.approx(np.mean([part["value"] for part in bins]), abs=1e-4)
    assert found["by_category"] and all(ordered(part) for part in found["by_category"].values())


def test_metrics_of_the_evaluation(finished: Path) -> None:
    found = metrics(finished, "evaluate")
    assert set(found["win_rate"]) == {"overall", "alignment", "aesthetics"}
    assert all(ordered(rate) and rate["prompts"] == SMALL["evaluate"]["prompts"] for rate in found["win_rate"].values())
    right = found["all_correct"]
    assert right["difference"] == pytest.approx(right["tuned"] - right["base"], abs=1e-4)
    assert -1 <= right["low"] <= right["difference"] <= right["high"] <= 1
    results = pd.read_parquet(finished / "data/evaluation/results.parquet")
    assert right["tuned"] == pytest.approx(results.loc[results["model"] == "tuned", "all_correct"].mean(), abs=1e-4)


def test_metrics_of_the_tuning(finished: Path) -> None:
    found = metrics(finished, "tune")
    history = json.loads((finished / "data/tuned/history.json").read_text())
    assert found["pairs"] == sum(rollout["pairs"] for rollout in history) > 0
    assert found["updates"] > 0 and found["prompts"] == 4 * len(history)
    assert [v["rollout"] for v in found["validation"]] == list(range(1, len(history) + 1))


# what others can use


def test_lora_loads_with_the_plain_pipeline(finished: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(finished / "data/base")
    pipe.load_lora_weights(finished / "data/tuned")
    saved = load_file(finished / "data/tuned/pytorch_lora_weights.safetensors")
    loaded = {
        name.replace(".default_0", ""): value for name, value in pipe.unet.state_dict().items() if ".lora_" in name
    }
    assert len(saved) == len(loaded) > 0
    assert all(torch.equal(loaded[name.removeprefix("unet.")], value) for name, value in saved.items())


@pytest.mark.parametrize("page", ["data/report/index.html", "data/filtered/data_docs/index.html"])
def test_pages_fetch_nothing(finished: Path, page: str) -> None:
    text = (finished / page).read_text()
    assert not re.search(r"<(script|link|iframe)\b[^>]*\b(src|href)=", text)
    targets = re.findall(r"""\b(?:src|href|action|data)\s*=\s*["']([^"']{0,60})""", text) + re.findall(
        r"""(?:url\(\s*|@import\s+)["']?([^"')]{0,60})""", text
    )
    assert [t for t in targets if re.match(r"\w+:|//", t) and not t.startswith("data:")] == []


def test_report_shows_every_stage_and_the_hashes_of_its_artifacts(finished: Path) -> None:
    text = (finished / "data/report/index.html").read_text()
    lock = yaml.safe_load((finished / "dvc.lock").read_text())["stages"]
    assert "Missing:" not in text
    assert all(out["md5"] in text for stage in lock if stage != "report" for out in lock[stage]["outs"])


def test_generate_draws_a_picture_with_the_lora(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    out = tmp_path / "cat.png"
    words = ["generate", "a cat left of a taxi at night", "--lora", "data/tuned", "--out", str(out), "--steps", "2"]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, f"wrote {out}\n")
    assert Image.open(out).size == (256, 256)
    first = out.read_bytes()
    CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert out.read_bytes() == first


def test_score_plots_the_reward_of_a_picture_by_timestep(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    row = pd.read_parquet("data/evaluation/results.parquet").iloc[0]
    picture, plot = tmp_path / "picture.png", tmp_path / "plot.png"
    picture.write_bytes(row["png"])
    words = ["score", str(picture), row["prompt"], "--out", str(plot)]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0 and len(re.findall(r"^t +\d+ +-?\d", result.stdout, re.MULTILINE)) >= 20
    assert Image.open(plot).format == "PNG"


def test_dvc_shows_the_headline_figures_in_a_terminal(finished: Path) -> None:
    lines = dvc(finished, "metrics", "show").splitlines()
    assert lines[-1].split()[0] == "metrics.json" and len(lines[-1].split()) == 6
    assert max(map(len, lines)) <= 80


def test_summary_prints_the_figures(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    result = CliRunner().invoke(cli.app, ["summary"], catch_exceptions=False)
    assert result.exit_code == 0 and "data/report/index.html" in result.stdout
    assert f"{metrics(finished, 'evaluate')['win_rate']['overall']['value']:.1%}" in result.stdout


# what runs again


def test_a_second_repro_runs_nothing(finished: Path) -> None:
    def times() -> dict[str, int]:
        return {name: (finished / name).stat().st_mtime_ns for name in [*contents(finished, *ROOTS), "dvc.lock"]}

    before = times()
    output = dvc(finished, "repro")
    assert ran(output) == [] and "up to date" in output
    assert times() == before
    assert git(finished, "status", "--porcelain") == ""


def test_the_report_is_drawn_again_with_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert ran(dvc(folder, "repro", "--force", "--single-item", "report")) == ["report"]
    assert contents(folder, "data/report") == contents(finished, "data/report")


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("tune", "beta", 100.0, ["tune", "evaluate", "report"]),
        ("reward", "embedding_dim", 64, ["reward", "tune", "evaluate", "report"]),
        ("evaluate", "bootstrap", 50, ["evaluate", "report"]),
        ("report", "examples", 3, ["report"]),
        ("tracking", "project", "another", []),
    ],
)
def test_a_changed_parameter_runs_its_stage_and_those_after_it(
    finished: Path, section: str, key: str, value: Any, expected: list[str]
) -> None:
    with changed(finished, section, key, value):
        assert ran(dvc(finished, "repro", "--dry", "--force-downstream")) == expected


def test_new_pairs_run_what_reads_them_and_a_promotion_what_compares(finished: Path) -> None:
    for file, expected in (
        ("data/collected/train-0.parquet", ["score", "filter", "encode"]),  # what follows depends on what they make
        ("models/promoted/pytorch_lora_weights.safetensors", ["evaluate"]),
    ):
        (finished / file).write_bytes(b"new")
        try:
            assert ran(dvc(finished, "repro", "--dry")) == expected
        finally:
            (finished / file).unlink()


def test_another_clone_with_the_remote_runs_nothing(finished: Path) -> None:
    clone = finished.parent / "clone"
    dvc(finished, "push", "--run-cache")
    git(finished.parent, "clone", "-q", str(finished), str(clone))
    assert not (clone / "data/pairs").exists()
    assert ran(dvc(clone, "repro", "--pull")) == []
    assert contents(clone, *ROOTS) == contents(finished, *ROOTS)
    assert git(clone, "status", "--porcelain") == ""
    shutil.rmtree(clone)
