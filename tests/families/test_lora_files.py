"""LoRAs of other trainers: whatever wrote the file, the same change of the same weights, or an error that says why."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from support import tiny_models

from lpo.commands.export import save_merged, single_file
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.families import lora, sd, sdxl

CPU, F32 = torch.device("cpu"), torch.float32
RANK, ALPHA = 4, 2.0
Halves = dict[str, tuple[torch.Tensor, torch.Tensor]]  # "part.layer" -> A, B


def halves_of(family: Any, layers: str, parts: tuple[str, ...], seed: int = 0) -> Halves:
    """Random A and B of every layer whose name ends in one of `layers`, small enough that attention stays smooth."""
    generator = torch.Generator().manual_seed(seed)
    found: Halves = {}
    for part in parts:
        for name, layer in family.modules()[part].named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and re.search(rf"({layers})$", name):
                shape = layer.weight.shape
                a = 0.1 * torch.randn(RANK, *shape[1:], generator=generator)
                b = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
                found[f"{part}.{name}"] = a, b
    return found


def changes(family: Any) -> dict[str, torch.Tensor]:
    """B A times its scale, of every layer that an active adapter changes."""
    found = {}
    for part, module in family.modules().items():
        for name, layer in module.named_modules():
            if isinstance(layer, BaseTunerLayer) and layer.active_adapters and not layer.disable_adapters:
                found[f"{part}.{name}"] = layer.get_delta_weight(layer.active_adapters[0])
    return found


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:])


def check(family: Any, halves: Halves, scale: float) -> None:
    found = changes(family)
    assert set(found) == set(halves)
    for name, (a, b) in halves.items():
        torch.testing.assert_close(found[name], scale * product(a, b), rtol=1e-4, atol=1e-5)


def named(halves: Halves, down: str, up: str, rename: Any = lambda name: name) -> dict[str, torch.Tensor]:
    return {rename(k) + tail: v for k, pair in halves.items() for tail, v in zip((down, up), pair, strict=True)}


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def model(sd_folder: Path) -> Any:
    return sd.load(str(sd_folder), CPU, F32)


ATTENTION = r"to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj"
BOTH = ("unet", "text_encoder")


def old_processor(name: str) -> str:
    """The names of diffusers before it used PEFT."""
    if name.startswith("unet."):
        return re.sub(r"\.(to_(?:q|k|v|out))(?:\.0)?$", r".processor.\1_lora", name)
    return name.replace("text_encoder.", "text_encoder.text_model.") + ".lora_linear_layer"


WRITERS = {
    "diffusers": lambda h: named(h, ".lora_A.weight", ".lora_B.weight"),
    "diffusers_old": lambda h: named(h, ".down.weight", ".up.weight", old_processor),
    "peft": lambda h: named(h, ".lora_A.default.weight", ".lora_B.default.weight", lambda k: f"base_model.model.{k}"),
    "kohya": lambda h: named(
        h, ".lora_down.weight", ".lora_up.weight",
        lambda k: k.replace("text_encoder.", "lora_te_text_model.").replace("unet.", "lora_unet_").replace(".", "_"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("told", ["nowhere", "tensors", "diffusers", "kohya", "peft"])
def test_every_layer_is_used_with_its_alpha(model: Any, writer: str, told: str, tmp_path: Path) -> None:
    halves = halves_of(model, ATTENTION, BOTH)
    tensors, metadata = WRITERS[writer](halves), {}
    folder = tmp_path / "lora"
    folder.mkdir()
    if told == "tensors":
        tail = r"(\.lora_A(\.default)?|\.lora_down|\.down)\.weight$"
        layers = {re.sub(tail, "", key) for key in tensors if re.search(tail, key)}
        tensors |= {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}
    elif told == "diffusers":
        said = {f"{part}.{key}": value for part in BOTH for key, value in (("r", RANK), ("lora_alpha", ALPHA))}
        metadata = {"lora_adapter_metadata": json.dumps(said)}
    elif told == "kohya":
        metadata = {"ss_network_alpha": str(ALPHA), "ss_network_dim": str(RANK)}
    elif told == "peft":
        (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    model.load_lora(folder)
    check(model, halves, 1 if told == "nowhere" else ALPHA / RANK)


def test_alphas_by_layer_and_the_rank_stabilised_scale(model: Any, tmp_path: Path) -> None:
    """rsLoRA (arXiv 2312.03732): alpha / sqrt(rank)."""
    halves = halves_of(model, "to_q|to_k", ("unet",))
    config = {"lora_alpha": 8, "alpha_pattern": {"to_k": 2}, "use_rslora": True}
    save_file(WRITERS["peft"](halves), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model.load_lora(tmp_path)
    for name, (a, b) in halves.items():
        scale = (2 if name.endswith("to_k") else 8) / math.sqrt(RANK)
        torch.testing.assert_close(changes(model)[name], scale * product(a, b), rtol=1e-4, atol=1e-5)


def test_a_file_of_two_writers(model: Any, tmp_path: Path) -> None:
    queries, keys = halves_of(model, "to_q", ("unet",), 1), halves_of(model, "to_k|q_proj", BOTH, 2)
    save_file(WRITERS["kohya"](queries) | WRITERS["diffusers"](keys), tmp_path / "mixed.safetensors")
    model.load_lora(tmp_path)
    check(model, queries | keys, 1)


def test_every_layer_of_a_u_net_by_the_names_of_its_original_code(sdxl_folder: Path, tmp_path: Path) -> None:
    """LoCon of kohya's trainer: convolutions too, and blocks counted as in Stability's code."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    family = sdxl.load(str(sdxl_folder), CPU, F32)
    parts = ("unet", "text_encoder", "text_encoder_2")
    halves = halves_of(family, ".", parts)
    resnet = {"norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "conv2": "out_layers_3",
              "conv_shortcut": "skip_connection"}  # fmt: skip
    others = {"time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2", "conv_out": "out_2",
              "add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2",
              "conv_in": "input_blocks_0_0"}  # fmt: skip

    def original(name: str) -> str:
        part, _, layer = name.partition(".")
        layer = layer.replace(".", "_")
        if part != "unet":
            number = 1 if part == "text_encoder" else 2
            return f"lora_te{number}_text_model_{layer.removeprefix('text_model_')}"
        if layer in others:
            return f"lora_unet_{others[layer]}"
        if place := re.fullmatch(r"(down|up)_blocks_(\d)_(resnets|attentions)_(\d)_(.+)", layer):
            side, level, kind, number, rest = place.groups()
            count = int(level) * 3 + int(number) + (side == "down")
            rest = resnet.get(rest, rest) if kind == "resnets" else rest
            blocks = "input_blocks" if side == "down" else "output_blocks"
            return f"lora_unet_{blocks}_{count}_{int(kind == 'attentions')}_{rest}"
        if place := re.fullmatch(r"(down|up)_blocks_(\d)_(?:down|up)samplers_0_conv", layer):
            first = 3 * int(place[2])
            down = place[1] == "down"
            return f"lora_unet_input_blocks_{first + 3}_0_op" if down else f"lora_unet_output_blocks_{first + 2}_2_conv"
        layer = layer.replace("mid_block_attentions_0_", "middle_block_1_")
        if place := re.fullmatch(r"mid_block_resnets_([01])_(.+)", layer):
            layer = f"middle_block_{2 * int(place[1])}_{resnet[place[2]]}"
        return f"lora_unet_{layer}"

    tensors = named(halves, ".lora_down.weight", ".lora_up.weight", original)
    attention = {k: v for k, v in tensors.items() if re.search(r"unet_(input|output)_blocks_\d+_1_", k)}
    assert attention, "the names are those that diffusers converts, where it does"
    _maybe_map_sgm_blocks_to_diffusers(dict(attention), family.denoiser.config)
    save_file(tensors, tmp_path / "locon.safetensors")
    family.load_lora(tmp_path / "locon.safetensors")
    check(family, halves, 1)


def test_diffusers_draws_the_same_with_the_same_file(sdxl_folder: Path, tmp_path: Path) -> None:
    """Both text encoders and the U-Net, against `pipe.load_lora_weights`."""
    family = sdxl.load(str(sdxl_folder), CPU, F32)
    parts = ("unet", "text_encoder", "text_encoder_2")
    layers = {part: halves_of(family, ATTENTION, (part,), seed) for seed, part in enumerate(parts)}
    state = {p: {k.removeprefix(f"{p}."): v for k, v in WRITERS["diffusers"](h).items()} for p, h in layers.items()}
    targets = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"]}
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, state["unet"], state["text_encoder"], state["text_encoder_2"],
        unet_lora_adapter_metadata={"r": RANK, "lora_alpha": ALPHA, "target_modules": targets["unet"]},
        text_encoder_lora_adapter_metadata={"r": RANK, "lora_alpha": 8, "target_modules": targets["text_encoder"]},
        text_encoder_2_lora_adapter_metadata={"r": RANK, "lora_alpha": 1, "target_modules": targets["text_encoder"]},
    )  # fmt: skip
    family.load_lora(tmp_path)
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path)
    text = family.encode_prompts(["a cat"])
    embeds, _, pooled, _ = pipe.encode_prompt("a cat", device=CPU)
    torch.testing.assert_close(text.tensors["prompt_embeds"], embeds, rtol=1e-3, atol=1e-4)
    x, t = torch.randn(1, *family.latent_shape), torch.tensor([500])
    theirs = pipe.unet(x, t, embeds, added_cond_kwargs=family.added(text) | {"text_embeds": pooled}).sample
    torch.testing.assert_close(family.predict(x, t, text), theirs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_reference_is_the_model_without_the_text_encoders_half_too(model: Any, tmp_path: Path) -> None:
    before = model.encode_prompts(["a cat"]).tensors["prompt_embeds"]
    save_file(WRITERS["diffusers"](halves_of(model, "q_proj|v_proj", ("text_encoder",))), tmp_path / "te.safetensors")
    model.load_lora(tmp_path)
    assert not torch.allclose(model.encode_prompts(["a cat"]).tensors["prompt_embeds"], before, atol=1e-3)
    with model.reference():
        torch.testing.assert_close(model.encode_prompts(["a cat"]).tensors["prompt_embeds"], before, rtol=0, atol=0)


def test_it_goes_out_as_it_came_in(model: Any, sd_folder: Path, tmp_path: Path) -> None:
    """A file of another alpha, exported for other tools, is the same change again; merged, it is in the weights."""
    halves = halves_of(model, ATTENTION, BOTH)
    metadata = {"ss_network_alpha": str(ALPHA)}
    save_file(WRITERS["kohya"](halves), tmp_path / "in.safetensors", metadata)
    model.load_lora(tmp_path / "in.safetensors")
    save_file(single_file(model), tmp_path / "out.safetensors")
    again = sd.load(str(sd_folder), CPU, F32)
    again.load_lora(tmp_path / "out.safetensors")
    check(again, halves, ALPHA / RANK)
    x, t = torch.randn(1, *model.latent_shape), torch.tensor([500])
    expected = model.predict(x, t, model.encode_prompts(["a cat"]))
    params = load_params("params.yaml")
    save_merged(model, replace(params, model=replace(params.model, path=str(sd_folder))), tmp_path / "merged")
    whole = sd.load(str(tmp_path / "merged"), CPU, F32)
    torch.testing.assert_close(whole.predict(x, t, whole.encode_prompts(["a cat"])), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("part", BOTH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_one_half_alone_and_other_number_formats(
    model: Any, sd_folder: Path, part: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    halves = {k: (a.to(dtype), b.to(dtype)) for k, (a, b) in halves_of(model, "to_q|q_proj", (part,)).items()}
    save_file(WRITERS["kohya"](halves), tmp_path / "in.safetensors")
    model.load_lora(tmp_path / "in.safetensors")
    check(model, {k: (a.float(), b.float()) for k, (a, b) in halves.items()}, 1)
    save_file(single_file(model), tmp_path / "out.safetensors")
    again = sd.load(str(sd_folder), CPU, F32)
    again.load_lora(tmp_path / "out.safetensors")
    check(again, {k: (a.float(), b.float()) for k, (a, b) in halves.items()}, 1)


def damaged(tensors: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    first = next(iter(tensors))
    if how == "foreign":
        return tensors | {"unet.somewhere.to_q.lora_A.weight": torch.ones(4, 8), "lora_te2_x.alpha": torch.tensor(1.0)}
    if how == "half":
        return {k: v for k, v in tensors.items() if k != first}
    if how == "wide":
        return {k: torch.cat([v, v], 1) if k == first else v for k, v in tensors.items()}
    if how == "dora":
        return tensors | {first.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(8)}
    if how == "zero":
        return {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
    if how == "nan":
        return {k: v * math.nan if k == first else v for k, v in tensors.items()}
    return {"weight": torch.ones(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("foreign", "2 of its .* keys belong to no layer of this model: lora_te2_x.alpha, unet.somewhere.to_q"),
        ("half", r"1 of its .* keys .*lora_B"), ("wide", r"1 layers have another width: unet\..* the file has"),
        ("dora", "lora_magnitude_vector"), ("zero", "it changes nothing"), ("nan", "NaN"), ("empty", "weight"),
    ],
)  # fmt: skip
def test_what_can_not_be_used_is_named_before_anything_is_drawn(
    model: Any, how: str, said: str, sd_folder: Path, tmp_path: Path
) -> None:
    tensors = damaged(WRITERS["diffusers"](halves_of(model, "to_q", ("unet",))), how)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "bad.safetensors")
    for refuse in (lora.check, lora.load):
        with pytest.raises(LpoError, match=said) as caught:
            refuse(tmp_path / "bad.safetensors", sd.load(str(sd_folder), torch.device("meta"), F32))
        assert "base model" in caught.value.remedy and caught.value.where.endswith("bad.safetensors")
    assert changes(model) == {}


def test_a_lora_of_another_model_is_found_by_its_configuration_alone(
    sd_folder: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    other = sdxl.load(str(sdxl_folder), CPU, F32)
    save_file(WRITERS["diffusers"](halves_of(other, "to_k", ("unet",))), tmp_path / "xl.safetensors")
    config = replace(load_params("params.yaml").model, path=str(sdxl_folder), family="sdxl")
    lora.check(tmp_path / "xl.safetensors", config)
    with pytest.raises(LpoError, match="keys belong to no layer|another width"):
        lora.check(tmp_path / "xl.safetensors", replace(config, path=str(sd_folder), family="sd"))


def test_an_adapter_that_training_left_untouched_may_be_judged(model: Any, tmp_path: Path) -> None:
    model.add_lora(2, seed=0)
    model.save_lora(tmp_path, model.lora_state())
    with pytest.raises(LpoError, match="it changes nothing"):
        lora.check(tmp_path, model)
    (tmp_path / "history.json").write_text("[]")
    lora.check(tmp_path, model)


def test_kohyas_names_are_those_of_diffusers_converter(model: Any) -> None:
    tensors = WRITERS["diffusers"](halves_of(model, "to_q", ("unet",)))
    theirs = convert_state_dict_to_kohya(dict(tensors))
    ours = WRITERS["kohya"](halves_of(model, "to_q", ("unet",)))
    assert {k for k in theirs if not k.endswith(".alpha")} == set(ours)


def test_a_folder_with_several_files_asks_which(model: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(LpoError, match="2 .safetensors files"):
        model.load_lora(tmp_path)
