"""What `lpo doctor` says of a preset before anything is downloaded or run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lpo import cli
from lpo.config.presets import PRESETS
from lpo.preflight import machine


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The rows of sd15 by name, where `reward` was timed with SD1.5 and `tune` with another model."""
    import os

    repository = Path(__file__).resolve().parents[2]
    before = Path.cwd()
    folder = tmp_path_factory.mktemp("doctor")
    os.chdir(folder)
    try:
        (folder / "params.yaml").write_text((repository / "params.yaml").read_text())
        (folder / ".checkpoints").mkdir()
        model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        timings = {"reward": {"seconds": 90, "model": model}, "tune": {"seconds": 60, "model": "data/base"}}
        (folder / ".checkpoints/timings.json").write_text(json.dumps(timings))
        text = (folder / "params.yaml").read_text()
        found = rows(CliRunner().invoke(cli.app, ["doctor", "sd15"]).stdout)
        assert (folder / "params.yaml").read_text() == text
        assert sorted(p.name for p in folder.iterdir()) == [".checkpoints", "params.yaml"]
    finally:
        os.chdir(before)
    return found


def rows(text: str) -> dict[str, str]:
    """Rows by name; downloads by what is downloaded."""
    found = {}
    for line in text.splitlines():
        name, rest = line[6:25].strip(), line[26:]
        if name == "download":
            name, _, rest = rest.partition(": ")
        found[name] = f"{line[:4].strip()} {rest}"
    return found


@pytest.mark.slow
def test_all_that_is_downloaded_has_its_size(sd15: dict[str, str]) -> None:
    """Weights of 4 bytes, in millions: SD1.5 859.5 + 123.1 + 83.7; CLIP-L 427.6, at 336 pixels 427.9, its vision tower
    304.0; CLIP-H 986.1, PickScore the same and HPS twice; Flan-T5-XXL with its head 11135.3 and the projector 21.0;
    ImageReward 445.3."""
    sizes = {
        "stable-diffusion-v1-5/stable-diffusion-v1-5": "4.3", "openai/clip-vit-large-patch14": "1.7",
        "openai/clip-vit-large-patch14-336": "1.7", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "3.9",
        "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE": "1.2", "zhiqiulin/clip-flant5-xxl": "44.6",
        "yuvalkirstain/PickScore_v1": "3.9", "xswu/HPSv2": "7.9", "THUDM/ImageReward": "1.8",
    }  # fmt: skip
    for source, size in sizes.items():
        assert sd15[source] == f"info about {size} GB in float32", source
    assert sd15["yuvalkirstain/pickapic_v1"] == "info 202.3 GB of pairs"


def test_every_stage_says_what_it_needs_and_how_long_it_took_with_this_model(sd15: dict[str, str]) -> None:
    stages = [name.split()[1] for name in sd15 if name.startswith("stage")]
    assert stages == ["dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report"]
    assert sd15["stage reward"].endswith("took 1.5 min here")
    assert sd15["stage tune"].endswith("not timed here yet")  # that was the embedded world's
    assert "(25.8 GB weights" in sd15["stage score"]  # 12.8 billion weights of three scorers in bf16
    evaluate = float(sd15["stage evaluate"].split("memory ")[1].split(" GB")[0])
    assert evaluate > 3.9  # PickScore in float32 has that much; drawing with SD1.5 takes more in all
    assert "(1.1 GB weights" in sd15["stage evaluate"]
    assert "disk 0.1 GB per 1000 pictures" in sd15["stage encode"]  # 2 * 4 * 64 * 64 numbers of 2 bytes a picture


def test_the_disk_must_hold_downloads_and_pairs(sd15: dict[str, str]) -> None:
    """In GB: the embedded world's 3, the pairs three times (the download, data/pairs, DVC's copy) and every stage.

    The latents of two pictures a pair, twice. A reward of 476 million weights (U-Net without its up blocks, text
    encoder, projections, scale): two copies of 4 bytes, and two checkpoints of weights, moments and best, 16 bytes.
    An adapter: the same with an average, 20 bytes. Pictures of 500 prompts by three models, raw, twice.
    """
    pairs, picture = 583_747 + 17_439 + 14_073, 2 * 4 * 64 * 64 * 2
    reward, adapter = 348_712_960 + 123_060_480 + (4800 + 768) * 768 + 1, 797_184
    stages = 2 * pairs * 2 * picture + reward * (2 * 4 + 2 * 16) + adapter * (2 * 4 + 2 * 20) + 2 * 3 * 500 * 3 * 512**2
    written, fetched = (float(sd15["disk"].split(word)[1].split(" GB")[0]) for word in ("takes ", "models "))
    assert written == pytest.approx((3e9 + 3 * 202_289_408_791 + stages) / 1e9, abs=0.06)
    models = 4.3 + 1.7 + 1.7 + 3.9 + 1.2 + 44.6 + 3.9 + 7.9 + 1.8  # of the downloads above
    assert fetched == pytest.approx(models, abs=0.5)


def test_what_was_loaded_already_is_no_download(project: Path) -> None:
    """The list of the hub that `lpo dataset` keeps: of two files one is here."""
    text = Path("params.yaml").read_text().replace("source: simulated", "source: hpdv2")
    Path("params.yaml").write_text(text.replace("judges: [emoji]", "judges: [pickscore]"))
    assert rows(CliRunner().invoke(cli.app, ["doctor"]).stdout)["ymhao/HPDv2"].endswith("only the hub can say")
    folder = Path("data/sources/hpdv2")
    folder.mkdir(parents=True)
    files = {"test.json": {"size": 1_000_000}, "train.tar.gz": {"size": 7_000_000_000}, "README.md": {"size": 5}}
    (folder / "manifest.json").write_text(
        json.dumps({"repository": "ymhao/HPDv2", "revision": "main", "commit": "0", "files": files})
    )
    (folder / "test.json").touch()
    assert rows(CliRunner().invoke(cli.app, ["doctor"]).stdout)["ymhao/HPDv2"] == "info 7.0 GB of pairs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "said"),
    [("stable-diffusion-v1-5/stable-diffusion-v1-5", None),
     ("stabilityai/stable-diffusion-xl-base-1.0", "another VAE: scaling and shift are (0.13025, 0.0)"),
     ("stabilityai/stable-diffusion-3-medium-diffusers", "latents of 16 channels, the model makes 4")],
)  # fmt: skip
def test_a_reward_of_other_latents_is_told_before_anything_is_downloaded(
    project: Path, base: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LRM-1.5 -> SD2.1 is right; a reward of SDXL or SD3 cannot train SD2.1."""
    preset = Path("sd21.yaml")
    text = (PRESETS / preset).read_text()
    preset.write_text(text.replace("base: stable-diffusion-v1-5/stable-diffusion-v1-5", f"base: {base}"))
    monkeypatch.setattr(machine, "stage_needs", lambda params: [])  # seconds, and not what this is about
    out = CliRunner().invoke(cli.app, ["doctor", "sd21.yaml"]).stdout
    assert ("the model makes" in out or "another VAE" in out) == (said is not None)
    assert said is None or said in out
