"""What the stages reward, tune and cell read, for their tests."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from lpo.data.latents import write_captions, write_moments
from lpo.emoji.vocabulary import make_tokenizer
from lpo.rewards.lrm import LatentRewardModel
from lpo.scorers import embedded

CAPTIONS = ["a cat", "two dogs at night", "a red heart above a taxi", "a star on grass"]


@pytest.fixture
def trained_inputs(project: Path, tiny_reward: LatentRewardModel) -> None:
    """A reward, scorers, prompts of three splits, latents and kept pairs below data/; the test says whose latents."""
    data = Path("data")
    (data / "reward").mkdir(parents=True)
    tiny_reward.save(data / "reward")
    torch.manual_seed(4)
    for name in ("scorers", "validators"):
        (data / name).mkdir()
        embedded.Scorers(make_tokenizer()).save(data / name)
    split = ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    pd.DataFrame({"prompt": CAPTIONS * 3, "split": split, "category": "single"}).to_parquet(data / "prompts.parquet")
    uids = [f"u{i}" for i in range(24)]
    moments = torch.cat([torch.randn(24, 4, 8, 8, generator=torch.Generator().manual_seed(0))] * 2, dim=1)
    (data / "latents").mkdir()
    write_moments(data / "latents", [(uids, moments)], 100)
    write_captions(data / "latents", CAPTIONS)
    rows = [
        (split, CAPTIONS[i % 4], uids[2 * i], uids[2 * i + 1], float(i % 2), 1.0 - i % 2, 1, 0.1, 0.0, -0.1 * (i % 2))
        for i, split in enumerate(["train"] * 6 + ["validation"] * 3 + ["test"] * 3)
    ]
    (data / "filtered").mkdir()
    columns = ["split", "caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "num_example_per_prompt"]
    columns += ["gap_aesthetic", "gap_clip", "gap_vqa"]
    pd.DataFrame(rows, columns=columns).to_parquet(data / "filtered" / "kept.parquet")
