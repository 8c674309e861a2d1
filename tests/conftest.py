"""Tests run offline, with one thread (so that sums have one order), and say nothing to anybody."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.defaults import with_default_params

if TYPE_CHECKING:
    from lpo.families.sd import SD
    from lpo.rewards.lrm import LatentRewardModel

# Before anything imports torch, a hub client, a tracker or Great Expectations: they read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    DVC_NO_ANALYTICS="1",
    DO_NOT_TRACK="1",
    WANDB_MODE="offline",
    GX_ANALYTICS_ENABLED="False",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    LPO_PROCESSES="1",  # a process more imports for seconds; tests/sampling/test_parts.py starts them
)

settings.register_profile("lpo", derandomize=True, deadline=None, database=None)
settings.load_profile("lpo")

LONGEST = (
    "test_prefect.py", "test_prefect_kill.py", "test_prefect_nights.py", "test_sharded_stages.py", "test_processes.py",
    "test_benchmarks.py", "test_kill.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left with one of them in the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the default parameters (support/defaults.py); tests read there and write elsewhere."""
    return with_default_params(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def project(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml, made the working directory."""
    shutil.copy(repository / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with an untrained U-Net of two levels, VAE and text encoder over the emoji vocabulary."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from lpo.emoji.vocabulary import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 24),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 16), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4,
        sample_size=32, scaling_factor=0.9,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, timestep_spacing="leading",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "base"
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text_config), tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def tiny(tiny_base: Path) -> SD:
    """The tiny model as a family object, fresh for every test."""
    import torch

    from lpo.families import sd

    return sd.load(str(tiny_base), torch.device("cpu"), torch.float32)


@pytest.fixture
def tiny_reward(tiny_base: Path) -> LatentRewardModel:
    """A latent reward model on a backbone of the tiny model, untrained."""
    import torch

    from lpo.families import sd
    from lpo.rewards.lrm import LatentRewardModel

    torch.manual_seed(1)
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    space = sd.load(str(tiny_base), torch.device("cpu"), torch.float32).codec.space()
    return LatentRewardModel(backbone, embedding_dim=8, guidance_scale=7.5, features="multi_scale", latent_space=space)


@pytest.fixture(scope="session")
def tiny_sd_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four levels, as SD1.5 has them."""
    from support import tiny_models

    return tiny_models.sd(tmp_path_factory.mktemp("tiny") / "sd")


@pytest.fixture(scope="session")
def tiny_sdxl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support import tiny_models

    return tiny_models.sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_sd3_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without T5, as many run it."""
    from support import tiny_models

    return tiny_models.sd3(tmp_path_factory.mktemp("tiny") / "sd3", t5=False)


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model of `tiny_transformers.MODELS`, by its name; written once a session."""
    from support.tiny_transformers import MODELS

    folder = tmp_path_factory.mktemp("tiny")
    return lambda name: folder / name if (folder / name).exists() else MODELS[name][1](folder / name)


@pytest.fixture(scope="session")
def tiny_sd3_t5_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support import tiny_models

    return tiny_models.sd3(tmp_path_factory.mktemp("tiny") / "sd3-t5", t5=True)
