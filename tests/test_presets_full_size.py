"""Every preset builds its full-size models on the meta device, where a tensor has a shape and no memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lpo.config import Params, check_params, load_params
from lpo.config.presets import merge
from lpo.config.reader import parse_yaml
from lpo.doctor.memory import configured
from lpo.errors import ConfigError
from lpo.families import load_family
from lpo.families.family import Family
from lpo.rewards.lrm import LatentRewardModel, probe_widths

META = torch.device("meta")
MILLION = 1e6
U_NETS_AND_SD3 = ["sd15", "sd21", "sdxl", "sdxl-turbo", "lcm-sdxl", "sd3", "spo-sd15", "spo-sdxl"]
TRANSFORMERS = {  # millions of weights of the denoiser, as its configuration makes them
    "sd35-medium": 2243.2, "sd35-large": 8056.6, "flux-dev": 11901.4, "flux-schnell": 11891.2, "flux2-klein": 3875.5,
    "qwen-image": 20430.4, "z-image-turbo": 6154.9,
}  # fmt: skip
REAL = [*U_NETS_AND_SD3, *TRANSFORMERS]


def preset_text(repository: Path, name: str) -> str:
    return (repository / "lpo/presets" / f"{name}.yaml").read_text()


def merged(repository: Path, name: str) -> str:
    return merge((repository / "params.yaml").read_text(), preset_text(repository, name))[0]


def params_of(repository: Path, name: str) -> Params:
    return check_params(parse_yaml(merged(repository, name), "merged"), "merged")


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / MILLION


def families(params: Params) -> tuple[Family, Family]:
    model = configured(params.model)
    base = configured(replace(params.model, path=params.reward.base or params.model.path, denoiser=None))
    return load_family(model, device=META), load_family(base, reward=True, layer=params.reward.layer, device=META)


# The first two are the figures of the papers; the others follow from the configurations.
SIZES = {"sd15": 859.5, "sdxl": 2567.5, "sd21": 865.9}
WIDTHS = {"sd15": (4800, 768, 768), "sd21": (4800, 768, 768), "sdxl": (3520, 1280, 1280), "sd3": (1536, 6144, 1280)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3"])
def test_a_preset_builds_its_models_and_the_rewards_widths_come_out_of_probing(repository: Path, name: str) -> None:
    params = params_of(repository, name)
    family, backbone = families(params)
    if name in SIZES:
        assert millions(family.denoiser) == pytest.approx(SIZES[name], abs=0.05)
    assert family.latent_shape == ((16 if name == "sd3" else 4), *(params.model.resolution // 8,) * 2)  # type: ignore
    projection = "none" if params.reward.text_projection == "none" else "random"
    config = params.reward
    reward = LatentRewardModel(backbone, config.embedding_dim, config.guidance_scale, config.features, projection)
    visual, text, dim = WIDTHS[name]
    assert (reward.visual_projection.in_features, reward.visual_projection.out_features) == (visual, dim)
    assert isinstance(reward.text_projection, nn.Identity) == (name == "sdxl")
    if isinstance(reward.text_projection, nn.Linear):
        assert (reward.text_projection.in_features, reward.text_projection.out_features) == (text, dim)
    assert millions(backbone.denoiser) < 0.8 * millions(family.denoiser)
    assert all(p.is_meta for p in reward.parameters())


def test_lcm_sdxl_is_sdxl_with_one_matrix_for_the_guidance_scale(repository: Path) -> None:
    """Its sampler takes four of the 50 timesteps that it was distilled on, and guidance is an input."""
    family, backbone = families(params_of(repository, "lcm-sdxl"))
    assert family.denoiser.config.time_cond_proj_dim == 256 and backbone.denoiser.config.time_cond_proj_dim is None
    assert millions(family.denoiser) == pytest.approx(2567.46 + 256 * 320 / MILLION, abs=0.01)
    assert family.steps(4)[0].tolist() == [999, 759, 499, 259]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_has_its_published_size(repository: Path, name: str) -> None:
    """And the reward's backbone is shorter; its features are as wide as the transformer."""
    params = params_of(repository, name)
    family, backbone = families(params)
    assert millions(family.denoiser) == pytest.approx(TRANSFORMERS[name], abs=0.05)
    channels, side = (32 if name == "flux2-klein" else 16), 1024 // 8
    assert family.latent_shape == (channels, side, side) and family.pixels == 1024
    visual, text = probe_widths(backbone, "mid")
    config = family.denoiser.config
    width = config.dim if name == "z-image-turbo" else config.num_attention_heads * config.attention_head_dim
    assert visual == width and text >= 768
    assert millions(backbone.denoiser) < 0.8 * millions(family.denoiser)


@pytest.mark.parametrize("name", REAL)
def test_every_value_of_a_preset_says_where_it_comes_from(repository: Path, name: str) -> None:
    values = [line for line in preset_text(repository, name).splitlines() if line.startswith("  ")]
    assert len(values) > 80
    for line in values:
        assert any(f"# [{tag}]" in line for tag in "PCEK-XSD"), line


@pytest.mark.parametrize("name", REAL)
def test_a_preset_is_judged_by_what_judges_photographs(repository: Path, name: str) -> None:
    """Those of the paper's tables, at the scale of both sides; the judge of the embedded world is refused there."""
    tree = parse_yaml(merged(repository, name), "merged")
    assert check_params(tree, "merged").evaluate.judges == (
        "pickscore", "imagereward", "hps_v2", "hps_v2_1", "aesthetic",
    )  # fmt: skip
    tree["evaluate"]["judges"] = ["emoji"]
    with pytest.raises(ConfigError, match="emoji judges scenes of the emoji world only, dataset.source is pickapic"):
        check_params(tree, "merged")


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3"])
def test_the_emoji_preset_leads_back_from_every_other(repository: Path, name: str) -> None:
    back, changes = merge(merged(repository, name), preset_text(repository, "emoji"))
    assert changes
    assert check_params(parse_yaml(back, "back"), "back") == load_params(repository / "params.yaml")
