"""What would stop a run is said before the run, all at once, by the stage and by the doctor alike."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lpo import cli, preflight
from lpo.config import Params, load_params
from lpo.config.presets import with_preset
from lpo.data.sources import index
from lpo.errors import LpoError
from lpo.preflight import PASSED, STAGES, machine, mistakes, require


def changed(params: Params, **values: Any) -> Params:
    """Parameters with other values: evaluate__prompts=2 is evaluate.prompts."""
    for path, value in values.items():
        section, _, key = path.partition("__")
        params = dataclasses.replace(params, **{section: dataclasses.replace(getattr(params, section), **{key: value})})
    return params


def texts(found: list[LpoError]) -> str:
    return "\n".join(map(str, found))


def lora(folder: Path, width: int = 16) -> Path:
    """A LoRA on an attention layer of data/base, whose width is another than 16."""
    folder.mkdir()
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)},
        folder / "pytorch_lora_weights.safetensors",
    )
    return folder


def test_the_default_parameters_pass_in_a_moment(params: Params) -> None:
    mistakes(params, "dataset")  # modules are imported
    before = time.process_time()
    assert mistakes(params, "dataset") == []
    assert time.process_time() - before < 1.5


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"evaluate__prompts": 2000}, "evaluate.prompts asks for 2000 prompts; there are 1000", "dataset.test_prompts"),
    ({"tune__validation_prompts": 201}, "the split validation has 200", "dataset.validation_prompts"),
    ({"dataset__test_prompts": 10**6}, "the emoji world has", "dataset.test_prompts"),
    ({"model__path": "data/nowhere"}, "", "model.path: data/nowhere"),
    ({"model__family": "sdxl"}, "is a StableDiffusionPipeline", "model.family"),
    ({"model__device": "cuda"}, "no CUDA device", "model.device"),
    ({"score__scorers": "data/nowhere"}, "", "score.scorers: data/nowhere"),
    ({"score__table": "scores.parquet"}, "nothing was imported", "scores.parquet"),
    ({"tune__reward": "data/other"}, "no reward in this folder", "tune.reward"),
    ({"tune__reward": "data/spm"}, "this reward scores pictures", "tune.reward"),
    ({"tune__rewards": {"data/reward": 1.0, "data/other": 0.5}}, "no reward in this folder", "data/other"),
    ({"reward__pretrained": "data/other"}, "", "reward.pretrained"),
    ({"evaluate__tuned": "other.safetensors"}, "", "evaluate.tuned"),
    ({"evaluate__prompts_file": "prompts.txt"}, "no such file of prompts", "evaluate.prompts_file"),
    ({"dataset__prompts": "prompts.txt"}, "no such file of prompts", "dataset.prompts"),
    ({"evaluate__judges": ("pickscore",)}, "the hub may not be asked", "evaluate.judges: pickscore"),
    ({"tune__num_inference_steps": 2000}, "2000 sampling steps do not fit", "tune.num_inference_steps"),
    ({"evaluate__num_inference_steps": 1001}, "1001 sampling steps do not fit", "evaluate.num_inference_steps"),
    ({"tune__timestep_range": (3, 40)}, "nothing is learnt", "tune.timestep_range"),
    ({"tune__method": "dgpo", "tune__guidance_scale": 2.0}, "without guidance", "tune.guidance_scale"),
    ({"tune__rewards": {"clip": 1.0}}, "this reward scores pictures", "tune.rewards: clip"),
    ({"tune__method": "nft", "tune__rewards": {"pickscore": 1.0}}, "the hub may not be asked", "rewards: pickscore"),
    ({"tune__method": "kto", "tune__kl_weight": 0.1}, "learns from no steps", "tune.kl_weight: 0.1"),
    ({"evaluate__adapter_timesteps": (3, 40)}, "the adapter would always be off", "adapter_timesteps: [3, 40]"),
    ({"tune__method": "spo", "tune__reward": "data/spm", "tune__reward_timestep": "look_ahead"}, "would do it twice",
     "tune.reward_timestep"),
    ({"tune__blind": "pickscore"}, "the hub may not be asked", "tune.blind: pickscore"),
    ({"tune__method": "smpo", "filter__strategy": "none"}, "computes no scores", "tune.method: smpo"),
    ({"evaluate__judges": ("geneval",)}, "needs prompts with tasks", "evaluate.prompts_file"),
]


@pytest.mark.parametrize(("values", "what", "where"), MISTAKES)
def test_a_mistake_is_said_before_the_work(
    params: Params, values: dict[str, Any], what: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = mistakes(changed(params, **values), "dataset")
    assert any(what in mistake.what and where in mistake.where + mistake.remedy for mistake in found), texts(found)
    assert all(mistake.remedy for mistake in found)


def test_all_mistakes_are_said_at_once_and_nothing_is_run(
    world: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = changed(params, evaluate__prompts=2000, tune__validation_prompts=201, tune__reward="data/other")
    with pytest.raises(LpoError) as error:
        require(wrong, "dataset")
    text = str(error.value)
    assert text.startswith("3 mistakes would stop the run:")
    for part in ("2000 prompts", "201 prompts", "no reward in this folder"):
        assert part in text
    assert not PASSED.exists()


def test_a_stage_does_not_begin_what_a_later_stage_would_end(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Params] = []
    module: Any = types.ModuleType("lpo.stages.dataset")
    module.run, module.REPOSITORIES, module.DOWNLOADS = calls.append, {}, Path("data/sources")
    monkeypatch.setitem(sys.modules, "lpo.stages.dataset", module)
    text = Path("params.yaml").read_text()
    assert "\n  prompts: 800\n" in text
    Path("params.yaml").write_text(text.replace("\n  prompts: 800\n", "\n  prompts: 1001\n"))
    run = CliRunner().invoke(cli.app, ["dataset"])
    assert isinstance(run.exception, LpoError) and "1001 prompts" in str(run.exception) and calls == []
    doctor = CliRunner().invoke(cli.app, ["doctor"])
    assert doctor.exit_code == 1 and str(run.exception).splitlines()[0] in doctor.stdout
    Path("params.yaml").write_text(text)
    assert CliRunner().invoke(cli.app, ["dataset"]).exit_code == 0 and len(calls) == 1


def test_the_check_is_made_once_in_a_run(world: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def count(_: Params, first: str) -> list[LpoError]:
        checked.append(first)
        return []

    monkeypatch.setattr(preflight, "mistakes", count)
    for stage in STAGES:
        require(params, stage)
    assert checked == ["dataset"]
    require(changed(params, evaluate__prompts=10), "tune")  # other parameters
    require(params, "score")
    require(params, "dataset")  # a stage before the one that was checked first
    assert checked == ["dataset", "tune", "score", "dataset"]
    pd.DataFrame({"prompt": ["a"], "split": ["test"]}).to_parquet("data/prompts.parquet")  # other inputs
    require(params, "score")
    os.environ["HF_HUB_OFFLINE"] = "0"
    try:
        require(params, "score")
    finally:
        os.environ["HF_HUB_OFFLINE"] = "1"
    assert checked[4:] == ["score", "score"]


def test_a_check_that_failed_is_made_again(world: Path, params: Params) -> None:
    wrong = changed(params, evaluate__prompts=2000)
    for _ in range(2):
        with pytest.raises(LpoError):
            require(wrong, "dataset")


def test_only_the_stages_that_will_run_are_checked(world: Path, params: Params) -> None:
    assert "data/prompts.parquet is not here" in texts(mistakes(params, "evaluate"))
    table = pd.DataFrame({"prompt": ["a"] * 900, "split": ["test"] * 900})
    table.to_parquet("data/prompts.parquet")
    (world / "data/tuned").mkdir()
    assert "no LoRA here" in texts(mistakes(params, "evaluate"))
    (world / "data/tuned").rmdir()
    lora(world / "data/tuned", 16)
    assert "(2, 16)" in texts(mistakes(params, "evaluate"))  # of another model
    wrong = changed(params, tune__validation_prompts=10**6, evaluate__prompts=901)
    found = texts(mistakes(wrong, "evaluate"))
    assert "there are 900" in found and "validation" not in found
    assert mistakes(wrong, "report") == []


def test_a_lora_of_another_model_is_told_before_the_trainings(world: Path, params: Params) -> None:
    folder = lora(world / "other")
    found = mistakes(changed(params, evaluate__tuned=str(folder)), "dataset")
    assert len(found) == 1 and "to_q" in str(found[0]) and "(2, 16)" in str(found[0])


def test_a_promoted_lora_of_another_model_is_told_before_the_trainings(world: Path, params: Params) -> None:
    (world / "models").mkdir()
    lora(world / "models/promoted")
    (found,) = mistakes(params, "dataset")
    assert found.what.startswith("the promoted model cannot be compared") and "(2, 16)" in found.what
    assert found.remedy.startswith("lpo models rollback base")


def test_prompts_that_the_judge_cannot_read_are_told(world: Path, params: Params) -> None:
    Path("prompts.txt").write_text("a photograph of my hat\n" + "\n".join(f"a car {i}" for i in range(900)))
    found = texts(mistakes(changed(params, evaluate__prompts_file="prompts.txt"), "dataset"))
    assert "describe no emoji scene" in found and "my hat" in found
    Path("prompts.txt").write_text("a cat\n")
    found = texts(mistakes(changed(params, evaluate__prompts_file="prompts.txt"), "dataset"))
    assert "asks for 800 prompts; there are 1 " in found


@pytest.mark.parametrize("preset", ["sd15", "sd21", "sdxl", "sd3"])
def test_a_preset_offline_names_every_repository_that_is_not_here(
    world: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "stage_needs", lambda params: [])  # seconds; tests/doctor has it
    params = with_preset(preset, Path("params.yaml"))
    found = mistakes(params, "dataset")
    absent = [mistake for mistake in found if "may not be asked" in mistake.what]
    assert any(params.model.path in mistake.where for mistake in absent)
    assert any("dataset.source" in mistake.where for mistake in absent)
    for judge in params.evaluate.judges:
        assert any(f"evaluate.judges: {judge}" in mistake.where for mistake in absent), judge


def test_memory_and_disk_are_those_of_this_machine(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 13: no GPU, and the doctor said ok to 45 GB."""
    monkeypatch.setattr(machine, "available", lambda params: (8_000_000_000, "this machine, which has no GPU,"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=10**9))
    params = with_preset("sd15", Path("params.yaml"))
    found = texts(mistakes(params, "dataset"))
    assert "of memory; this machine, which has no GPU, has 8.0 GB" in found and "stage tune" in found
    assert "of disk are needed" in found
    assert "of memory" not in texts(mistakes(load_params(), "dataset"))  # the emoji world fits everywhere


def test_memory_of_this_machine_is_at_most_what_it_has(params: Params) -> None:
    held, name = machine.available(changed(params, model__device="cpu"))
    assert 0 < held <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") and "this machine" in name


def picture(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def imported(world: Path, params: Params) -> Callable[..., Params]:
    """Parameters for an imported folder with these captions of train, and pictures of this side."""

    def make(captions: list[str], side: int = 32) -> Params:
        folder = world / "data/sources/mine"
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            rows = [
                {"ranking_id": i, "caption": caption if split == "train" else f"a {split} {i}", "jpg_0": picture(side),
                 "jpg_1": picture(side), "image_0_uid": f"{split}{i}", "image_1_uid": f"{split}{i}b", "label_0": 1.0,
                 "label_1": 0.0, "num_example_per_prompt": 1, "are_different": True, "has_label": True}
                for i, caption in enumerate(captions)
            ]  # fmt: skip
            pd.DataFrame(rows).to_parquet(folder / f"{split}-00000.parquet")
        index.register(Path("data/sources/mine"))
        found = changed(params, dataset__source="folder", dataset__path="data/sources/mine")
        return changed(found, evaluate__judges=("clipscore",), evaluate__prompts=2, tune__validation_prompts=2)

    return make


def test_an_imported_folder_that_fits_leaves_the_judges_to_be_had(imported: Callable[..., Params]) -> None:
    found = mistakes(imported(["a cat", "a car"]), "dataset")
    assert [mistake.where.split(": ")[1] for mistake in found] == ["evaluate.judges"], texts(found)


def test_small_scorers_do_not_score_photographs(imported: Callable[..., Params]) -> None:
    """Fault 5: emoji scorers scored 512 px photographs in silence."""
    photographs = imported(["a cat", "a car"], side=64)
    assert "read 32 pixels; the pictures of data/sources/mine have 64×64" in texts(mistakes(photographs, "dataset"))
    published = changed(photographs, filter__strategy="none")
    assert "have 64×64" not in texts(mistakes(published, "dataset"))


def test_long_captions_are_counted_by_the_models_own_tokenizer(imported: Callable[..., Params]) -> None:
    long = imported(["a cat " * 20, "a car"])
    assert "1 of 6 captions are longer than the model reads" in texts(mistakes(long, "dataset"))
    assert "longer" not in texts(mistakes(changed(long, filter__long_captions="cut"), "dataset"))


def test_prompts_of_an_imported_folder_are_its_captions(imported: Callable[..., Params]) -> None:
    few = changed(imported(["a cat", "a car"]), evaluate__prompts=3, tune__validation_prompts=5)
    found = texts(mistakes(few, "dataset"))
    assert "asks for 3 prompts; there are 2 at most" in found and "the split validation has 2" in found


def test_a_source_that_changed_is_told(world: Path, imported: Callable[..., Params]) -> None:
    params = imported(["a cat", "a car"])
    (world / "data/sources/mine/validation-00000.parquet").unlink()
    assert "it is not what was imported" in texts(mistakes(params, "dataset"))


def test_folders_that_cannot_be_written_are_told(world: Path, params: Params) -> None:
    (world / "metrics").write_text("a file in the place of the folder")
    (world / ".checkpoints").symlink_to("/proc/self")
    found = texts(mistakes(params, "dataset"))
    assert "metrics is not a folder" in found and "nothing can be written to the folder .checkpoints" in found
