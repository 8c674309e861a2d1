"""Weights that are damaged, or a pickle under the name of safetensors: refused with their place, and never run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lpo.errors import LpoError
from lpo.families import lora, sd
from lpo.rewards import lrm

CPU, F32 = torch.device("cpu"), torch.float32
UNET, TEXT, VAE = "diffusion_pytorch_model", "model", "diffusion_pytorch_model"


class Harmful:
    """What a hostile file does when it is unpickled: here it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


Spoil = Callable[[Path], None]


@pytest.fixture(params=["pickle", "torch", "empty", "truncated"])
def spoil(request: pytest.FixtureRequest, tmp_path: Path) -> Spoil:
    harm = Harmful(tmp_path / "harm")

    def change(file: Path) -> None:
        if request.param == "torch":
            torch.save({"weight": harm}, file)
        else:
            whole = file.read_bytes()
            file.write_bytes({"pickle": pickle.dumps(harm), "empty": b"", "truncated": whole[:-8]}[request.param])

    return change


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@pytest.mark.parametrize(("part", "name"), [("unet", UNET), ("text_encoder", TEXT), ("vae", VAE)])
def test_a_part_of_a_model(folder: Path, spoil: Spoil, part: str, name: str, tmp_path: Path) -> None:
    spoil(folder / part / f"{name}.safetensors")
    with pytest.raises(LpoError, match=f"can't load {part}") as caught:
        sd.load(str(folder), CPU, F32)
    assert caught.value.where == str(folder) and caught.value.remedy
    assert not (tmp_path / "harm").exists()


def test_a_lora(folder: Path, spoil: Spoil, tmp_path: Path) -> None:
    family = sd.load(str(folder), CPU, F32)
    family.add_lora(2, seed=0)
    family.save_lora(tmp_path / "lora", family.lora_state())
    spoil(tmp_path / "lora" / lora.FILE)
    with pytest.raises(LpoError, match="no LoRA can be read"):
        sd.load(str(folder), CPU, F32).load_lora(tmp_path / "lora")
    assert not (tmp_path / "harm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("file", [lrm.HEADS, f"unet/{UNET}.safetensors", f"text_encoder/{TEXT}.safetensors"])
def test_a_reward(tiny_reward: lrm.LatentRewardModel, spoil: Spoil, file: str, tmp_path: Path) -> None:
    (tmp_path / "lrm").mkdir()
    tiny_reward.save(tmp_path / "lrm")
    spoil(tmp_path / "lrm" / file)
    with pytest.raises(LpoError) as caught:
        lrm.load(tmp_path / "lrm", CPU)
    assert str(tmp_path / "lrm") in caught.value.where
    assert not (tmp_path / "harm").exists()
