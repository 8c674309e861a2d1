"""`lpo score IMAGE PROMPT`: any prompt is drawn as it is written, and what cannot be read is told before the work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lpo.commands import inspect
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.rewards.lrm import LatentRewardModel


@pytest.fixture
def params(project: Path, tiny_base: Path, tiny_reward: LatentRewardModel, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setattr(inspect, "DRAWS", 2)
    (project / "data/reward").mkdir(parents=True)
    tiny_reward.save(project / "data/reward")
    Image.new("RGB", (40, 20), "red").save(project / "picture.png")
    loaded = load_params()
    return replace(loaded, model=replace(loaded.model, path=str(tiny_base), device="cpu"))


@pytest.mark.parametrize(
    "prompt", ["a cat for $5", "$x_$ and $\\frac{$", "a cat\nand a dog", "ein Hündchen 犬 🐶", "a " * 500]
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_prompt_is_a_title(params: Params, prompt: str) -> None:
    out = Path("score.png")
    inspect.run(params, Path("picture.png"), prompt, out)
    assert Image.open(out).format == "PNG"


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".pdf", b"%PDF"), (".jpg", b"\xff\xd8")])
def test_the_suffix_says_the_format(params: Params, suffix: str, start: bytes) -> None:
    out = Path(f"plot{suffix}")
    inspect.run(params, Path("picture.png"), "a cat", out)
    assert out.read_bytes().startswith(start)


def test_what_cannot_be_read_is_told(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "load_family", None)  # nothing is loaded
    Path("broken.png").write_bytes(b"no picture")
    for image, prompt, said in (("broken.png", "a cat", "picture"), ("picture.png", " ", "prompt is empty")):
        with pytest.raises(LpoError, match=said):
            inspect.run(params, Path(image), prompt, Path("score.png"))
    assert not Path("score.png").exists()
