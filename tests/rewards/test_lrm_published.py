"""Folders in the layout of casiatao/LRM, made of tiny random weights, score as the published model would score them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lpo.config import Model, load_params
from lpo.errors import LpoError
from lpo.families.latent_space import check_same
from lpo.rewards import lrm, lrm_published

PROMPTS = ["a cat", "two dogs at night", "a star on grass"]
T = torch.tensor([1, 451, 951])
CPU = torch.device("cpu")


def perturbed(part: Any, seed: int) -> Any:
    """A fine-tuned part: other weights than the base's."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in part.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return part


def folder_of(base: Path, folder: Path, xl: bool, texts: int, dim: int) -> Path:
    """What the published code's `save` writes: parts by save_pretrained, the rest by torch.save."""
    unet = perturbed(UNet2DConditionModel.from_pretrained(base / "unet"), 1)
    unet.save_pretrained(folder / "unet")
    perturbed(CLIPTextModel.from_pretrained(base / "text_encoder"), 2).save_pretrained(folder / "text_encoder")
    if xl:
        second = perturbed(CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2"), 3)
        second.save_pretrained(folder / "text_encoder_2")
    channels = unet.config.block_out_channels
    torch.manual_seed(4)
    state: dict[str, Any] = {"visual_projection": {"weight": torch.randn(dim, sum(channels) + channels[-1])}}
    if not xl:
        state["text_projection"] = {"weight": torch.randn(dim, texts)}
    torch.save(state | {"logit_scale": torch.tensor(2.9)}, folder / "state_dict.pt")
    return folder


def residuals_and_mid(unet: UNet2DConditionModel, *args: Any, **more: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """All skip connections of a whole forward (down_block_res_samples), and the mid block's output."""
    seen: list[torch.Tensor] = []
    mid: list[torch.Tensor] = []
    hooks = [unet.conv_in.register_forward_hook(lambda _m, _i, out: seen.append(out))]
    hooks += [b.register_forward_hook(lambda _m, _i, out: seen.extend(out[1])) for b in unet.down_blocks]
    hooks += [unet.mid_block.register_forward_hook(lambda _m, _i, out: mid.append(out))]
    unet(*args, **more)
    for hook in hooks:
        hook.remove()
    return seen, mid[0]


def ids(base: Path, part: str, prompts: list[str]) -> torch.Tensor:
    tokenizer = CLIPTokenizer.from_pretrained(base / part)
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def reference_score(base: Path, folder: Path, xl: bool, latents: torch.Tensor) -> torch.Tensor:
    """The published forward: prompts and empty prompts in one batch, residuals 2, 5, 8(, 11), mid block enhanced."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    state = torch.load(folder / "state_dict.pt", weights_only=True)
    texts = PROMPTS + [""] * len(PROMPTS)
    first = CLIPTextModel.from_pretrained(folder / "text_encoder")
    out = first(ids(base, "tokenizer", texts), output_hidden_states=True)
    more: dict[str, Any] = {}
    if xl:
        second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
        large = second(ids(base, "tokenizer_2", texts), output_hidden_states=True)
        hidden = torch.cat([out.hidden_states[-2], large.hidden_states[-2]], dim=-1)
        side = unet.config.sample_size * 4.0
        sizes = torch.tensor([[side, side, 0, 0, side, side]]).repeat(len(texts), 1)
        more["added_cond_kwargs"] = {"text_embeds": large.text_embeds, "time_ids": sizes}
        words = large.text_embeds[: len(PROMPTS)]
    else:
        hidden = out.last_hidden_state
        words = out.pooler_output[: len(PROMPTS)] @ state["text_projection"]["weight"].T
    x, t = torch.cat([latents, latents]), torch.cat([T, T])
    residuals, mid = residuals_and_mid(unet, x, t, hidden, **more)
    stages = [residuals[i][: len(PROMPTS)].mean(dim=(2, 3)) for i in ((2, 5, 8) if xl else (2, 5, 8, 11))]
    with_text, without = mid.mean(dim=(2, 3)).chunk(2)
    pooled = torch.cat([*stages, without + 7.5 * (with_text - without)], dim=-1)
    visual = F.normalize(pooled @ state["visual_projection"]["weight"].T, dim=-1)
    return state["logit_scale"].exp() * (visual * F.normalize(words, dim=-1)).sum(-1)


@pytest.fixture
def model(repository: Path) -> Callable[[Path], Model]:
    def of(base: Path) -> Model:
        family = "sdxl" if "sdxl" in base.name else "sd"
        return replace(load_params(repository / "params.yaml").model, family=family, path=str(base), device="cpu")

    return of


@pytest.fixture(params=["sd", "sdxl"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, bool]:
    xl = request.param == "sdxl"
    base = request.getfixturevalue("tiny_sdxl_base" if xl else "tiny_sd_base")
    return base, folder_of(base, tmp_path / "lrm", xl, texts=16, dim=24 if xl else 12), xl


def latents() -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def score(model: lrm.LatentRewardModel) -> torch.Tensor:
    return model.score(latents(), T, model.encode_prompts(PROMPTS), model.encode_prompts([""]))


def test_a_published_folder_scores_as_the_published_model(
    folders: tuple[Path, Path, bool], model: Callable[[Path], Model], tmp_path: Path
) -> None:
    base, folder, xl = folders
    loaded = lrm_published.load_reward(str(folder), model(base))
    expected = reference_score(base, folder, xl, latents())
    torch.testing.assert_close(score(loaded), expected, rtol=1e-5, atol=1e-5)
    assert loaded.features == "multi_scale" and not any(p.requires_grad for p in loaded.parameters())
    (tmp_path / "ours").mkdir()
    loaded.save(tmp_path / "ours")  # as ours it is the same, and needs the base no longer
    again = lrm_published.load_reward(str(tmp_path / "ours"), replace(model(base), path="nowhere"))
    torch.testing.assert_close(score(again), expected, rtol=1e-5, atol=1e-5)
    assert again.latent_space is not None
    check_same(again.latent_space, loaded.latent_space, "")  # type: ignore[arg-type]
    assert {p.suffix for p in (tmp_path / "ours").rglob("*") if p.is_file()} == {".json", ".safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.5, torch.tensor([2.5]), torch.tensor(2.5, dtype=torch.float16)])
def test_the_scale_is_a_number_or_a_tensor_as_published_trainers_write_it(
    folders: tuple[Path, Path, bool], model: Callable[[Path], Model], scale: Any
) -> None:
    base, folder, _ = folders
    state = torch.load(folder / "state_dict.pt", weights_only=True)
    torch.save(state | {"logit_scale": scale}, folder / "state_dict.pt")
    assert lrm_published.load(str(folder), model(base)).logit_scale.item() == 2.5


class Harmful:
    """What a hostile file does when it is unpickled: here it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["torch", "pickle", "truncated"])
def test_a_pickle_is_refused_and_never_run(
    folders: tuple[Path, Path, bool], model: Callable[[Path], Model], tmp_path: Path, how: str
) -> None:
    base, folder, _ = folders
    file = folder / "state_dict.pt"
    state = torch.load(file, weights_only=True) | {"extra": Harmful(tmp_path / "harm")}
    if how == "torch":
        torch.save(state, file)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(state["extra"]))
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LpoError, match="no weights can be read"):
        lrm_published.load_reward(str(folder), model(base))
    assert not (tmp_path / "harm").exists()


def test_a_folder_that_lacks_parts_or_has_another_base_says_so(
    folders: tuple[Path, Path, bool], model: Callable[[Path], Model], tiny_base: Path, tmp_path: Path
) -> None:
    base, folder, xl = folders
    with pytest.raises(LpoError, match=r"config.json or state_dict.pt"):
        lrm_published.load_reward(str(tmp_path), model(base))
    torch.save({"logit_scale": torch.tensor(1.0)}, folder / "state_dict.pt")
    with pytest.raises(LpoError, match="lacks visual_projection"):
        lrm_published.load_reward(str(folder), model(base))
