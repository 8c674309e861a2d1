"""Every family with a diffusion transformer, on tiny folders: equal to diffusers' own pipeline and forward."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline
from support.tiny_transformers import MODELS, SIDE
from support.together import together

from lpo.config import Model, SamplerSettings, load_params
from lpo.families import load_family, sharding
from lpo.families.dit.base import Transformer, pack
from lpo.families.family import Family
from lpo.sampling.generate import sample

PROMPTS, T = ["a cat", "two dogs"], torch.tensor([3.5, 991.0])
PATCHES = (SIDE // 8) ** 2


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(repository: Path, folder: Path, name: str) -> Model:
    model = load_params(repository / "params.yaml").model
    return replace(model, family=MODELS[name][0], path=str(folder), device="cpu", resolution=SIDE)  # type: ignore


@pytest.fixture
def model(repository: Path, tiny_transformer: Callable[[str], Path], name: str) -> Model:
    return model_of(repository, tiny_transformer(name), name)


def latents(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def with_random_lora(family: Family) -> None:
    family.add_lora(2, seed=0)
    noise = torch.Generator().manual_seed(7)
    family.load_lora_state({k: torch.randn(v.shape, generator=noise) for k, v in family.lora_state().items()})


@torch.no_grad()
def test_pictures_are_those_of_the_pipeline(model: Model, name: str) -> None:
    """Four steps without noise from one start, guidance 3: prompts, ids, packing, times, guidance and the VAE."""
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    asked: dict[str, Any] = {"guidance_scale": 3.0, "latents": start}
    if model.family in ("flux", "qwen_image"):
        asked["latents"] = pack(start)
    if name == "flux2-klein":
        asked["latents"] = Flux2KleinPipeline._patchify_latents(start)
    if name == "z-image":
        asked["guidance_scale"] = 2.0  # its scale begins at 0
    if name == "flux-schnell":
        asked |= {"guidance_scale": 0.0, "true_cfg_scale": 3.0, "negative_prompt": ""}
    if name == "qwen-image":
        asked |= {"guidance_scale": None, "true_cfg_scale": 3.0, "negative_prompt": " "}
    if name == "sana":
        asked |= {"complex_human_instruction": None, "use_resolution_binning": False}
    pipe = DiffusionPipeline.from_pretrained(model.path, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(prompt="a cat", num_inference_steps=4, height=SIDE, width=SIDE, output_type="pt", **asked).images
    family = load_family(model)
    ours = family.decode(sample(family, ["a cat"], [3], SamplerSettings(4, 3.0, 0.0, 1)))
    assert family.latent_shape == (4, 8, 8) and float(theirs.std()) > 0.01
    torch.testing.assert_close(ours / 2 + 0.5, theirs, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 3])
def test_features_are_the_values_inside_of_diffusers_own_forward(model: Model, layer: int) -> None:
    """Of a whole model, and of a reward's backbone that has no more layers than it reads."""
    family, backbone = load_family(model), load_family(model, reward=True, layer=layer)
    assert isinstance(family, Transformer)
    blocks = [block for part in family.blocks for block in getattr(family.denoiser, part)]
    seen: list[torch.Tensor] = []
    blocks[layer - 1].register_forward_hook(lambda _m, _i, out: seen.append(out[1] if isinstance(out, tuple) else out))
    text = family.encode_prompts(PROMPTS)
    family.predict(latents(), T, text)
    picture = seen[0][:, :PATCHES] if model.family == "z_image" else seen[0][:, -PATCHES:]
    if model.family == "sana":  # words are not among its tokens, and a token is one latent
        picture = seen[0]
    for reads in (replace(family, layer=layer), backbone):
        _, found = reads.features(latents(), T, text)
        torch.testing.assert_close(found, picture.mean(dim=1), rtol=1e-5, atol=1e-6)
    counts = [sum(p.numel() for p in part.denoiser.parameters()) for part in (backbone, family)]
    assert counts[0] < counts[1] and backbone.codec.vae is None
    torch.testing.assert_close(family.scale(latents()), backbone.scale(latents()))


@torch.no_grad()
def test_latents_and_back(model: Model) -> None:
    """`scale` and `decode` undo each other, and a row does not depend on its batch."""
    family = load_family(model)
    moments = family.encode_images(torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    assert moments.shape == (2, 8, 8, 8)
    z = moments.chunk(2, dim=1)[0]
    shift, factor = family.codec._shift_and_factor(z)
    torch.testing.assert_close(family.scale(z) / factor + shift, z)
    text = family.encode_prompts(PROMPTS)
    together = family.predict(latents(), T, text)
    alone = family.predict(latents()[1:], T[1:], text[[1]])
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_adapter_off_is_a_frozen_copy_and_the_file_loads_everywhere(model: Model, tmp_path: Path) -> None:
    family, text = load_family(model), load_family(model).encode_prompts(PROMPTS)
    frozen = copy.deepcopy(family)
    with_random_lora(family)
    before, after = frozen.predict(latents(), T, text), family.predict(latents(), T, text)
    assert not torch.allclose(before, after, atol=1e-3)
    with family.reference():
        torch.testing.assert_close(family.predict(latents(), T, text), before, rtol=0, atol=0)
    family.save_lora(tmp_path, family.lora_state())
    pipe = DiffusionPipeline.from_pretrained(model.path, local_files_only=True)
    pipe.load_lora_weights(tmp_path)
    again = load_family(model)
    again.load_lora(tmp_path)
    for other in (again, replace(frozen, denoiser=pipe.transformer)):
        torch.testing.assert_close(other.predict(latents(), T, text), after, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_with_half_of_every_block_each_are_one(
    repository: Path, tiny_transformer: Callable[[str], Path], tiny_sd_base: Path, tiny_sdxl_base: Path, tmp_path: Path
) -> None:
    """Predictions, features and the adapter's gradients of every family, those with a U-Net too."""
    models = [model_of(repository, tiny_transformer(n), n) for n in MODELS]
    models.append(replace(models[0], family="sd", path=str(tiny_sd_base)))
    models.append(replace(models[0], family="sdxl", path=str(tiny_sdxl_base)))
    models = [replace(model, gradient_checkpointing=True) for model in models]

    def computed(model: Model, shard: bool) -> list[torch.Tensor]:
        family = load_family(replace(model, shard=shard))
        assert bool(sharding.blocks(family.denoiser))
        with_random_lora(family)
        text = family.encode_prompts(PROMPTS)
        prediction = family.predict(latents(), T, text)
        prediction.square().mean().backward()
        gradients = [p.grad for p in family.denoiser.parameters() if p.grad is not None]
        with torch.no_grad():
            return [prediction.detach(), family.features(latents(), T, text)[1], *gradients]

    alone = [computed(model, shard=False) for model in models]

    def work() -> None:
        from lpo.train.common import distributed

        with distributed.joined(torch.device("cpu")):
            for model, expected in zip(models, alone, strict=True):
                prediction, features, *gradients = computed(model, shard=True)
                torch.testing.assert_close((prediction, features), tuple(expected[:2]), rtol=1e-4, atol=1e-5)
                for found, one in zip(gradients, expected[2:], strict=True):
                    if model.family != "sdxl":
                        torch.testing.assert_close(found, one, rtol=1e-3, atol=1e-4, msg=lambda m, n=model: f"{n}: {m}")
                        continue
                    # Its skip connections' gradients are summed in another order, and cancel: 0.2 % of a layer's.
                    error, size = float((found - one).norm()), float(one.norm())
                    assert error <= 5e-3 * size + 1e-4, f"{error} of {size}"

    together(work, tmp_path)


def test_the_guide_shows_the_code_of_its_example() -> None:
    """docs/add_a_model.md: the class of SANA, and the function that writes a tiny one."""
    root = Path(__file__).resolve().parents[2]
    shown = re.findall(r"```python\n(.*?)```", (root / "docs/add_a_model.md").read_text(), re.DOTALL)
    family = (root / "lpo/families/dit/sana.py").read_text()
    tiny = (root / "tests/support/tiny_transformers.py").read_text()
    assert len(shown) == 2 and shown[0] in family and shown[1] in tiny
    assert len(shown[0].splitlines()) <= 40
