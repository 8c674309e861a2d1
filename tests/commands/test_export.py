"""What `lpo export` writes is reloaded by diffusers and predicts as the tuned model does."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from lpo.commands import export
from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.families import load_family

NAMES = {"tiny_sd_base": "sd", "tiny_sdxl_base": "sdxl", "tiny_sd3_base": "sd3"}
PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(params=NAMES)
def params(request: pytest.FixtureRequest, repository: Path) -> Params:
    loaded = load_params(repository / "params.yaml")
    path = str(request.getfixturevalue(request.param))
    return replace(loaded, model=replace(loaded.model, family=NAMES[request.param], path=path, device="cpu"))


@pytest.fixture
def lora(params: Params, tmp_path: Path) -> Path:
    """A LoRA folder whose B is not zero."""
    family = load_family(params.model)
    family.add_lora(2, seed=0)
    generator = torch.Generator().manual_seed(5)
    state = {k: torch.randn(v.shape, generator=generator) * 0.5 for k, v in family.lora_state().items()}
    family.save_lora(tmp_path / "lora", state)
    return tmp_path / "lora"


@torch.no_grad()
def prediction(family: Any) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return family.predict(x, torch.tensor([1, 700]), family.encode_prompts(PROMPTS))


@pytest.mark.slow
def test_the_merged_pipeline_predicts_as_the_model_with_the_lora(params: Params, lora: Path, tmp_path: Path) -> None:
    tuned = load_family(params.model)
    base = prediction(tuned)
    tuned.load_lora(lora)
    export.run(params, lora, tmp_path / "merged")
    merged = load_family(replace(params.model, path=str(tmp_path / "merged")))
    torch.testing.assert_close(prediction(merged), prediction(tuned), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(prediction(merged), base, atol=1e-3)
    assert not any("lora" in name for name, _ in merged.denoiser.named_parameters())
    without = {"text_encoder_3": None, "tokenizer_3": None} if params.model.family == "sd3" else {}
    DiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True, **without)


@pytest.mark.slow
def test_the_single_file_has_the_names_of_other_tools_and_loads_again(
    params: Params, lora: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    export.run(params, lora, file)
    state = load_file(file)
    kinds = {name.partition(".")[2] for name in state}
    assert all(float(v) == 2 for k, v in state.items() if k.endswith(".alpha"))
    if params.model.family == "sd3":
        assert all(name.startswith("transformer.transformer_blocks.") for name in state)
    else:
        assert kinds == {"lora_down.weight", "lora_up.weight", "alpha"}
        sample = {
            "sd": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "sdxl": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        }
        assert sample[params.model.family] in state
        assert any(("mid_block" if params.model.family == "sd" else "middle_block") in name for name in state)
    tuned, again = load_family(params.model), load_family(params.model)
    tuned.load_lora(lora)
    again.load_lora(file)
    torch.testing.assert_close(prediction(again), prediction(tuned))
    without = {"text_encoder_3": None, "tokenizer_3": None} if params.model.family == "sd3" else {}
    pipe = DiffusionPipeline.from_pretrained(params.model.path, local_files_only=True, **without)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    plain = replace(tuned, denoiser=getattr(pipe, tuned.part))
    torch.testing.assert_close(prediction(plain), prediction(tuned))


def test_names_of_sdxls_original_code() -> None:
    """Its U-Net has 9 input blocks, 3 a level with the downsampler at the end, 0 the first convolution."""
    tail = "_transformer_blocks_9_attn2_to_k.alpha"
    for ours, original in {
        "down_blocks_1_attentions_0": "input_blocks_4_1", "down_blocks_2_attentions_1": "input_blocks_8_1",
        "mid_block_attentions_0": "middle_block_1", "up_blocks_0_attentions_2": "output_blocks_2_1",
        "up_blocks_1_attentions_0": "output_blocks_3_1",
    }.items():  # fmt: skip
        assert export.original_name(f"lora_unet_{ours}{tail}", 3) == f"lora_unet_{original}{tail}"


@pytest.mark.parametrize("params", ["tiny_sd_base"], indirect=True)
def test_a_promoted_model_is_exported_by_its_name(
    params: Params, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`promoted` and `lpo-1` are names of folders in models/, as for `lpo generate`."""
    export.run(params, lora, tmp_path / "folder.safetensors")
    for name in ("promoted", "lpo-1"):
        shutil.copytree(lora, tmp_path / "models" / name)
        monkeypatch.chdir(tmp_path)
        export.run(params, Path(name), tmp_path / f"{name}.safetensors")
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "folder.safetensors").read_bytes()


def test_without_a_lora_nothing_is_written(params: Params, tmp_path: Path) -> None:
    with pytest.raises(LpoError, match="no LoRA here"):
        export.run(params, tmp_path, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
