"""What holds for every family, on tiny SDXL and SD3 folders: equal to diffusers' own pipelines and forwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from lpo.config import Model, SamplerSettings, load_params
from lpo.errors import LpoError
from lpo.families import load_family, sdxl, settle
from lpo.families.dit import sd3
from lpo.families.dit.base import Transformer
from lpo.families.family import Family

PROMPTS = ["a cat", "two dogs"]
CPU, F32 = torch.device("cpu"), torch.float32
BASES = ["tiny_sdxl_base", "tiny_sd3_base", "tiny_sd3_t5_base"]
T = {"sd": [1, 700], "sdxl": [1, 700], "sd3": [3.5, 991.0]}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def family(base: Path, model: Model) -> Family:
    return load_family(model)


@pytest.fixture
def model(repository: Path, base: Path) -> Model:
    name = "sdxl" if "sdxl" in base.name else "sd3"
    return replace(load_params(repository / "params.yaml").model, family=name, path=str(base), device="cpu")


@pytest.fixture
def pipe(base: Path) -> Any:
    return pipeline_of(base)


def pipeline_of(base: Path) -> Any:
    without = {} if "t5" in base.name else {"text_encoder_3": None, "tokenizer_3": None}
    return DiffusionPipeline.from_pretrained(base, local_files_only=True, **(without if "sd3" in base.name else {}))


def latents(n: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def times(family: Family) -> torch.Tensor:
    return torch.tensor(T[family.name])


def encoded_by(pipe: Any, prompts: list[str]) -> tuple[torch.Tensor, ...]:
    """(prompt embeds, negative embeds, pooled, negative pooled) of the pipeline's own encode_prompt."""
    more = {"prompt_2": None} | ({"prompt_3": None} if "3" in type(pipe).__name__ else {})
    return pipe.encode_prompt(prompts, **more, device=CPU, do_classifier_free_guidance=True)


def test_prompts_and_the_null_prompt_are_those_of_the_pipeline(family: Family, pipe: Any) -> None:
    states, negative, pooled, negative_pooled = encoded_by(pipe, PROMPTS)
    pooled_name = {"sdxl": "text_embeds", "sd3": "pooled"}[family.name]
    ours, null = family.encode_prompts(PROMPTS).tensors, family.null().tensors
    torch.testing.assert_close(ours["prompt_embeds"], states)
    torch.testing.assert_close(ours[pooled_name], pooled)
    torch.testing.assert_close(null["prompt_embeds"], negative[:1])
    torch.testing.assert_close(null[pooled_name], negative_pooled[:1])
    assert bool((negative == 0).all()) == (family.name == "sdxl")  # SDXL guides against zeros


@torch.no_grad()
def test_features_are_the_values_inside_of_diffusers_own_forward(family: Family, base: Path) -> None:
    conditioning = family.encode_prompts(PROMPTS)
    seen: dict[str, torch.Tensor] = {}

    def watch(module: torch.nn.Module, name: str) -> None:
        def note(_m: Any, _i: Any, out: Any) -> None:
            picture = out[1] if family.name == "sd3" else out[0] if isinstance(out, tuple) else out
            seen[name] = picture

        module.register_forward_hook(note)

    if family.name == "sd3":
        watch(family.denoiser.transformer_blocks[1], "mid")
    else:
        for i, block in enumerate(family.denoiser.down_blocks):
            watch(block.attentions[-1] if getattr(block, "has_cross_attention", False) else block.resnets[-1], str(i))
        watch(family.denoiser.mid_block, "mid")
    family.predict(latents(), times(family), conditioning)
    over = 1 if family.name == "sd3" else (2, 3)
    reward = (
        sd3.load(str(base), CPU, F32, reward=True, layer=2)
        if family.name == "sd3"
        else sdxl.load(str(base), CPU, F32, True)
    )
    down, mid = reward.features(latents(), times(family), reward.encode_prompts(PROMPTS))
    assert [d.shape[1] for d in down] == ([] if family.name == "sd3" else [16, 24, 32])
    for i, value in enumerate(down):
        torch.testing.assert_close(value, seen[str(i)].mean(dim=over), rtol=0, atol=0)
    torch.testing.assert_close(mid, seen["mid"].mean(dim=over), rtol=0, atol=0)


@torch.no_grad()
def test_guided_sampling_is_that_of_the_pipeline(family: Family, pipe: Any) -> None:
    """Four steps without noise, guidance 3: the latents of the diffusers pipeline from the same start."""
    from lpo.sampling.generate import sample

    seeds = [3]
    start = torch.randn(1, *family.latent_shape, generator=torch.Generator().manual_seed(3))
    shared = {"guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "latent", "height": 32, "width": 32}
    theirs = pipe("a cat", latents=start, **shared).images
    ours = sample(family, ["a cat"], seeds, SamplerSettings(4, 3.0, 0.0, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    decoded = pipe.vae.decode(ours / pipe.vae.config.scaling_factor + (pipe.vae.config.shift_factor or 0)).sample
    torch.testing.assert_close(family.decode(ours), decoded.clamp(-1, 1))


@pytest.mark.slow
@torch.no_grad()
def test_the_adapter_off_is_a_frozen_copy_and_the_file_loads_everywhere(
    family: Family, model: Model, base: Path, tmp_path: Path
) -> None:
    conditioning, t = family.encode_prompts(PROMPTS), times(family)
    frozen = copy.deepcopy(family)
    family.add_lora(2, seed=0)
    generator = torch.Generator().manual_seed(7)
    family.load_lora_state({k: torch.randn(v.shape, generator=generator) for k, v in family.lora_state().items()})
    before, after = frozen.predict(latents(), t, conditioning), family.predict(latents(), t, conditioning)
    assert not torch.allclose(before, after, atol=1e-3)
    with family.reference():
        torch.testing.assert_close(family.predict(latents(), t, conditioning), before, rtol=0, atol=0)
    family.save_lora(tmp_path, family.lora_state())
    again = load_family(model)
    again.load_lora(tmp_path)
    torch.testing.assert_close(again.predict(latents(), t, conditioning), after)
    pipe = pipeline_of(base)
    pipe.load_lora_weights(tmp_path)
    again = replace(frozen, denoiser=getattr(pipe, frozen.part))
    torch.testing.assert_close(again.predict(latents(), t, conditioning), after)


@torch.no_grad()
def test_conditioning_is_one_row_a_prompt(family: Family) -> None:
    conditioning, t = family.encode_prompts(PROMPTS), times(family)
    together = family.predict(latents(), t, conditioning)
    alone = family.predict(latents()[1:], t[1:], conditioning[[1]])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert len(conditioning.repeat(3)) == 6 and len(family.null().expand(5)) == 5


def test_the_scale_of_latents_and_back(family: Family) -> None:
    x = latents()
    config = family.codec.config
    expected = (x - (config.get("shift_factor") or 0)) * config["scaling_factor"]
    torch.testing.assert_close(family.scale(x), expected)
    assert family.latent_shape == (4, 8, 8) and family.pixels == 32 and family.pixels_per_latent == 4


def test_half_precision_reads_float32_latents_and_trains_a_float32_adapter(model: Model) -> None:
    half = load_family(replace(model, dtype="bf16"))
    weights = half.add_lora(2, seed=0)
    assert {w.dtype for w in weights} == {torch.float32}
    prediction = half.predict(latents(), times(half), half.encode_prompts(PROMPTS))
    prediction.float().square().mean().backward()
    assert prediction.dtype == torch.bfloat16 and any(bool(w.grad.abs().sum() > 0) for w in weights)  # type: ignore


def test_gradient_checkpointing_changes_memory_and_no_value(model: Model) -> None:
    gradients = []
    for checkpointing in (False, True):
        family = load_family(replace(model, gradient_checkpointing=checkpointing))
        weights = family.add_lora(2, seed=0)
        family.predict(latents(), times(family), family.encode_prompts(PROMPTS)).square().mean().backward()
        gradients.append([w.grad for w in weights])
        assert family.denoiser.is_gradient_checkpointing == checkpointing
    torch.testing.assert_close(*gradients)


def test_another_resolution_is_another_latent_shape(model: Model) -> None:
    assert load_family(replace(model, resolution=16)).latent_shape == (4, 4, 4)


@torch.no_grad()
def test_another_vae_and_another_denoiser_take_the_place_of_the_models_own(model: Model, tmp_path: Path) -> None:
    """Each from a folder of its own, as madebyollin/sdxl-vae-fp16-fix and casiatao/LPO/lpo_sd15_merge/unet are."""
    own = load_family(model)
    for part in (own.denoiser, own.codec.vae):
        for weight in part.parameters():
            weight.mul_(1.1)
    own.denoiser.save_pretrained(tmp_path / "merge/unet")
    own.codec.vae.save_pretrained(tmp_path / "vae")  # type: ignore[union-attr]
    other = load_family(replace(model, vae=str(tmp_path / "vae"), denoiser=str(tmp_path / "merge/unet")))
    plain, text, t = load_family(model), own.encode_prompts(PROMPTS), times(own)
    for family, same in ((other, True), (plain, False)):
        predicted = torch.allclose(family.predict(latents(), t, text), own.predict(latents(), t, text), rtol=1e-3)
        assert (predicted, torch.allclose(family.decode(latents()), own.decode(latents()), rtol=1e-3)) == (same, same)


@pytest.mark.parametrize("compile_", [False, True])
def test_compile_is_a_switch_of_the_policy_and_not_of_a_reward(
    model: Model, monkeypatch: pytest.MonkeyPatch, compile_: bool
) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    switched = replace(model, compile=compile_)
    family = load_family(switched)
    assert compiled == [family.denoiser] * compile_
    load_family(switched, reward=True, layer=2 if model.family == "sd3" else None)
    assert len(compiled) == compile_


def test_a_model_of_another_family_is_refused(model: Model) -> None:
    with pytest.raises(LpoError, match="set it to sd"):
        load_family(replace(model, family="sd"))


def test_sizes_of_the_picture_are_conditions_of_sdxl(tiny_sdxl_base: Path) -> None:
    family = sdxl.load(str(tiny_sdxl_base), CPU, F32, resolution=16)
    assert family.added(family.encode_prompts(PROMPTS))["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_steps_of_flow_matching_are_the_schedulers(tiny_sd3_base: Path) -> None:
    family = sd3.load(str(tiny_sd3_base), CPU, F32)
    family.scheduler.set_timesteps(7)
    t, s = family.steps(7)
    torch.testing.assert_close(t, family.scheduler.timesteps)
    assert t[0] == 1000 and s[-1] == 0 and torch.equal(s[:-1], t[1:])


@pytest.mark.parametrize("form", ["ddim", "sde"])
def test_both_forms_of_the_stochastic_step_are_there(tiny_sd3_base: Path, form: Any) -> None:
    family = sd3.load(str(tiny_sd3_base), CPU, F32, form=form)
    flow = family.transition(0.7)
    t, s = family.steps(5)
    assert flow.form == form
    sigma = flow.sigma(t, s)
    assert bool((sigma[:-1] > 0).all()) and sigma[-1] == 0  # the last step has no density
    level = t[1] / 1000
    expected = 0.7 * (level / (1 - level)) ** 0.5 * ((t[1] - s[1]) / 1000) ** 0.5
    if form == "sde":
        torch.testing.assert_close(sigma[1], expected)


@pytest.mark.parametrize("layer", [None, 0, 4])
def test_a_layer_that_is_not_there_is_refused(tiny_sd3_base: Path, layer: int | None) -> None:
    with pytest.raises(LpoError, match="one of the 3 layers"):
        sd3.load(str(tiny_sd3_base), CPU, F32, reward=True, layer=layer)


def test_a_scheduler_that_adds_noise_of_its_own_is_refused(tiny_sd3_base: Path, tmp_path: Path) -> None:
    scheduler = sd3.load(str(tiny_sd3_base), CPU, F32).scheduler
    type(scheduler).from_config(scheduler.config, stochastic_sampling=True).save_pretrained(tmp_path / "scheduler")
    with pytest.raises(LpoError, match="stochastic_sampling"):
        Transformer.load_scheduler(str(tmp_path))


def test_weights_that_are_missing_are_refused_and_pickles_are_not_read(tiny_sdxl_base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(tiny_sdxl_base, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    removed = weights.pop("conv_in.weight")
    save_file(weights, file)
    with pytest.raises(LpoError, match="1 weights are missing, such as conv_in.weight"):
        sdxl.load(str(folder), CPU, F32)
    file.unlink()
    torch.save(weights | {"conv_in.weight": removed}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(LpoError, match="safetensors"):
        sdxl.load(str(folder), CPU, F32)


@pytest.mark.parametrize(("device", "deterministic", "strict"), [
    ("cuda", False, False), ("cuda", True, True), ("cpu", False, True), ("meta", True, None),
])  # fmt: skip
def test_kernels_repeat_on_a_cpu_always_and_on_cuda_strictly_where_that_is_on(
    monkeypatch: pytest.MonkeyPatch, device: str, deterministic: bool, strict: bool | None
) -> None:
    """Strictly: without `warn_only`, with which attention's backward would not repeat. Shapes alone decide nothing."""
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *given, **more: asked.append((given, more)))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    settle(torch.device(device), deterministic)
    assert asked == ([] if strict is None else [((strict,), {})])


def test_a_loaded_family_makes_sums_repeatable(model: Model) -> None:
    """Rows that are gathered several times have one gradient, whichever thread comes first."""
    rows, factors = torch.randint(8, (256,)), torch.randn(256, 77, 128)

    def gradient() -> torch.Tensor:
        weight = torch.ones(8, 77, 128, requires_grad=True)
        (weight[rows] * factors).sum().backward()
        assert weight.grad is not None
        return weight.grad

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    try:
        load_family(model)
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(20))
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_a_u_net_that_reads_the_guidance_scale_is_told_it_as_in_the_pipeline(
    tiny_sdxl_base: Path, tmp_path: Path, repository: Path
) -> None:
    """LCM-SDXL: one forward for every scale; its reward backbone is told a scale of 1."""
    from support.tiny_models import lcm_unet

    unet = lcm_unet(tiny_sdxl_base, tmp_path / "lcm")
    named = load_params(repository / "params.yaml").model
    model = replace(named, family="sdxl", path=str(tiny_sdxl_base), denoiser=str(unet), scheduler="lcm", device="cpu")
    family, pipe = load_family(model), pipeline_of(tiny_sdxl_base)
    text, null, t = family.encode_prompts(PROMPTS), family.null(), torch.tensor([999, 259])
    found = {scale: family.guided(latents(), t, text, null, scale) for scale in (1.0, 8.0)}
    for scale, prediction in found.items():
        told = pipe.get_guidance_scale_embedding(torch.full((2,), scale - 1), embedding_dim=8)
        expected = family.denoiser(
            latents(), t, text.tensors["prompt_embeds"], timestep_cond=told, added_cond_kwargs=family.added(text)
        ).sample
        torch.testing.assert_close(prediction, expected)
    assert not torch.allclose(found[1.0], found[8.0], atol=1e-3)
    torch.testing.assert_close(family.predict(latents(), t, text), found[1.0])
    seen: list[torch.Tensor] = []
    family.denoiser.mid_block.register_forward_hook(lambda _m, _i, out: seen.append(out.mean((2, 3))))
    family.predict(latents(), t, text)
    torch.testing.assert_close(family.features(latents(), t, text)[1], seen[0])
