"""evaluate with published judges: tiny random models in the published layouts, from prompts to metrics."""

import dataclasses
import io
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.judge_folders import with_tiny_judges

from lpo.commands import summary
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.evaluate import judges, shards, sides
from lpo.files import write_parquet
from lpo.scorers import pickscore
from lpo.stages import evaluate, report

pytestmark = pytest.mark.slow

JUDGES = ("pickscore", "hps_v2", "imagereward")
PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi"]


@pytest.fixture
def params(project: Path, tiny_base: Path, tiny, tiny_reward) -> Params:
    """A project with a base, a reward, a LoRA that does something, judges, and a file of prompts."""
    Path("data/reward").mkdir(parents=True)
    tiny_reward.save(Path("data/reward"))
    tiny.add_lora(2, seed=0)
    generator = torch.Generator().manual_seed(7)
    Path("data/tuned").mkdir()
    state = {name: torch.randn(value.shape, generator=generator) for name, value in tiny.lora_state().items()}
    tiny.save_lora(Path("data/tuned"), state)
    (project / "prompts.txt").write_text("\n".join([*PROMPTS, "a training prompt", "a cat"]))
    write_parquet("data/prompts.parquet", pd.DataFrame({"prompt": ["A training  prompt"], "split": ["train"]}))
    found = with_tiny_judges(load_params(), project)
    config = dataclasses.replace(
        found.evaluate, judges=JUDGES, prompts_file="prompts.txt", prompts=3, images_per_prompt=2, batch_size=2,
        num_inference_steps=2, judge_batch_size=2, bootstrap=50, guidance_scale=2.0, base_guidance_scale=2.0,
    )  # fmt: skip
    model = dataclasses.replace(found.model, path=str(tiny_base))
    return dataclasses.replace(found, evaluate=config, model=model)


def change(params: Params, **values: object) -> Params:
    return dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, **values))


def read() -> tuple[pd.DataFrame, dict]:
    return pd.read_parquet("data/evaluation/results.parquet"), json.loads(Path("metrics/evaluate.json").read_text())


def test_every_picture_is_drawn_and_judged(params):
    evaluate.run(params)
    results, metrics = read()
    assert list(results) == ["prompt", "category", "seed", "model", "png", *JUDGES, "lrm"]
    assert results.groupby(["model", "prompt"]).size().tolist() == [2] * 9  # three models, three prompts
    assert (metrics["prompts"], metrics["images"], metrics["prompts_left_out"]) == (3, 6, 2)
    assert set(metrics["judges"]) == set(JUDGES) and metrics["judge"] == "pickscore"
    assert metrics["win_rate"] == metrics["win_rate_default_cfg"]  # one guidance scale for both sides
    left = pd.read_parquet("data/evaluation/left_out.parquet")
    assert left["reason"].tolist() == ["a training prompt", "there before"]
    assert left["row"].tolist() == [3, 4]  # of the file, from 0 as in every table of left out rows
    assert not Path("data/evaluation/pictures").exists()  # they are small: the results hold them whole

    judge = pickscore.load("clip", "clip", torch.device("cpu"))  # the scores are those of the pictures that are kept
    row = results.query("model == 'tuned'").iloc[3]
    score = judge.score([Image.open(io.BytesIO(row["png"]))], [row["prompt"]])
    assert row["pickscore"] == pytest.approx(float(score), abs=1e-4)
    assert (
        not results.query("model == 'tuned'")["png"]
        .reset_index(drop=True)
        .equals(results.query("model == 'base'")["png"].reset_index(drop=True))
    )


def test_report_and_summary_read_what_evaluate_wrote(params, capsys):
    evaluate.run(params)
    report.run(params)
    page = Path("data/report/index.html").read_text()
    assert "<h2>Judges</h2>" in page and "by PickScore (95% interval" in page and "ImageReward" in page
    assert "Missing: metrics/evaluate.json" not in page
    capsys.readouterr()
    summary.run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["HPSv2", "ImageReward", "PickScore"]
    summary.run(markdown=True)
    assert "| Win rate over the base, overall, by PickScore |" in capsys.readouterr().out


def test_killed_and_resumed_is_the_same_and_repeats_nothing(params, monkeypatch):
    evaluate.run(params)
    before, metrics = read()
    cache = Path(".checkpoints/evaluate")
    lost = [*cache.rglob("imagereward-*/00001.parquet"), *cache.glob("*/*/00002.parquet")]
    assert len(lost) == 4  # of two models: the base is drawn once for both of its sides
    for file in lost:
        file.unlink()
    drawn = []
    original = sides.generate
    monkeypatch.setattr(sides, "generate", lambda *args: drawn.append(args[1]) or original(*args))
    evaluate.run(params)
    again, more = read()
    pd.testing.assert_frame_equal(before, again)
    assert more == metrics and drawn == [[PROMPTS[2]] * 2] * 2


def test_another_judge_draws_nothing_and_another_lora_draws_one_side(params, monkeypatch):
    evaluate.run(change(params, judges=("hps_v2",)))
    load = judges.load_judge
    monkeypatch.setattr(
        judges, "load_judge", lambda *args: pytest.fail("judged before") if args[0] == "hps_v2" else load(*args)
    )
    drawn, original = [], sides.generate
    monkeypatch.setattr(sides, "generate", lambda *args: drawn.append(args[1]) or original(*args))
    evaluate.run(change(params, judges=("hps_v2", "pickscore")))
    assert drawn == []
    first, _ = read()
    lora = Path("data/tuned/pytorch_lora_weights.safetensors")
    save_file({name: 0.5 * value for name, value in load_file(lora).items()}, lora)
    evaluate.run(change(params, judges=("pickscore",)))
    assert len(drawn) == 3  # batches of the tuned side
    second, _ = read()
    scores = {
        model: [frame[frame["model"] == model]["pickscore"].tolist() for frame in (first, second)]
        for model in ("base", "tuned")
    }
    assert scores["base"][0] == scores["base"][1] and scores["tuned"][0] != scores["tuned"][1]


def test_the_base_at_its_own_guidance_scale_is_a_third_side(params):
    evaluate.run(change(params, base_guidance_scale=4.0, judges=("hps_v2",)))
    results, metrics = read()
    sides = {name: rows["hps_v2"].tolist() for name, rows in results.groupby("model")}
    assert set(sides) == {"base", "base_matched", "tuned"} and sides["base"] != sides["base_matched"]
    assert len(metrics["win_rate_default_cfg"]) == 1


def test_everything_missing_is_named_before_anything_is_drawn(params, monkeypatch):
    monkeypatch.setattr(sides, "load_family", lambda *_: pytest.fail("nothing may be loaded"))
    models = dataclasses.replace(params.evaluate.judge_models, pickscore="nobody/nothing", hps="clip")
    with pytest.raises(LpoError) as caught:
        evaluate.run(change(params, judges=(*JUDGES, "geneval"), judge_models=models))
    for part in ("pickscore: nobody/nothing", "hps_v2: clip: there is no HPS_v2_compressed.pt",
                 "geneval: 3 of 3 prompts have no task"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(LpoError, match=r"asks for 4 prompts, there are 3 \(2 left out\)"):
        evaluate.run(change(params, prompts=4))


def test_a_score_that_is_no_number_stops_the_stage_with_its_prompt(params, monkeypatch):
    class Broken:
        def score(self, pictures, prompts):
            return torch.tensor([float("nan") if prompt == PROMPTS[1] else 1.0 for prompt in prompts])

    monkeypatch.setattr(judges, "load_judge", lambda *_: Broken())
    with pytest.raises(LpoError, match=f"pickscore gives nan to 2 pictures, the first of '{PROMPTS[1]}'"):
        evaluate.run(params)


def test_large_pictures_are_shown_small():
    buffer = io.BytesIO()
    Image.new("RGB", (1024, 512), "red").save(buffer, "PNG")
    assert Image.open(io.BytesIO(shards.preview(buffer.getvalue()))).size == (256, 128)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    assert shards.preview(buffer.getvalue()) == buffer.getvalue()


def test_the_scorers_of_mpcf_are_judges_too(params: Params) -> None:
    """clipscore is the cosine of score.models.clip: PickScore's without its logit scale, the same weights given."""
    evaluate.run(change(params, judges=("clipscore", "pickscore")))
    frame, metrics = read()
    assert set(metrics["judges"]) == {"clipscore", "pickscore"} and metrics["judge"] == "clipscore"
    ratio = frame["pickscore"] / frame["clipscore"]
    assert ratio.std() < 1e-4 * abs(ratio.mean())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("clipscore", "dtype", "fp32"), ("vqascore", "vqa_tokenizer", "another"), ("aesthetic", "aesthetic_head", "a/b")],
)
def test_all_that_decides_a_score_of_mpcf_is_in_its_key(project: Path, name: str, key: str, value: str) -> None:
    """Else scores in float32 would stand for those in bfloat16. Its head is known by its content."""
    loaded = load_params()

    def identity(**values: object) -> dict[str, object]:
        models = dataclasses.replace(loaded.score.models, **values)
        score = dataclasses.replace(loaded.score, models=models)
        config = dataclasses.replace(loaded.evaluate, judges=(name,))
        (found,) = judges.judges_of(config, score, (1, 1), loaded.model, {}, None)
        return found.identity

    assert identity() == identity() != identity(**{key: value})
    heads = []
    for content in (b"one", b"two"):
        Path("head.safetensors").write_bytes(content)
        heads.append(identity(aesthetic_head="head.safetensors"))
    assert heads[0] != heads[1]


def test_large_pictures_are_kept_as_they_were_judged(tmp_path):
    """The results hold small ones; a part that two sides share is kept once."""
    parts = []
    for name, side in (("large", 300), ("small", 32)):
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), "red").save(buffer, "PNG")
        parts.append(tmp_path / name / "00000.parquet")
        write_parquet(parts[-1], pd.DataFrame({"prompt": ["a cat"], "seed": [1], "png": [buffer.getvalue()]}))
    shards.keep_pictures({"base_matched": parts[:1], "base": parts[:1], "tuned": parts[1:]}, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    frame = pd.read_parquet(kept)
    assert kept.name == "base_matched-00000.parquet" and frame["model"].tolist() == ["base_matched"]
    assert Image.open(io.BytesIO(frame["png"][0])).size == (300, 300)


def test_a_reward_of_other_latents_is_left_out_and_the_log_says_so(params, caplog):
    """Another model's data/reward must not stop the evaluation of a published checkpoint."""
    file = Path("data/reward/config.json")
    config = json.loads(file.read_text())
    config["latent_space"]["channels"] = 16
    file.write_text(json.dumps(config))
    evaluate.run(change(params, judges=("pickscore",)))
    results, metrics = read()
    assert "lrm" not in results and "reward" not in metrics
    assert "no column lrm: data/reward: the reward reads latents of 16 channels" in caplog.text


def test_geneval_judges_by_the_tasks_of_the_prompt_file(params):
    tasks = [
        {"tag": "single_object", "prompt": "a cat", "include": [{"class": "cat", "count": 1}]},
        {"tag": "counting", "prompt": "two dogs", "include": [{"class": "dog", "count": 2}]},
    ]
    Path("geneval.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    evaluate.run(change(params, judges=("geneval", "pickscore"), prompts_file="geneval.jsonl", prompts=2))
    results, metrics = read()
    assert set(results["geneval"]) <= {0.0, 1.0} and metrics["judge"] == "geneval"
    assert set(metrics["geneval"]["by_task"]) == {"single_object", "counting"}
