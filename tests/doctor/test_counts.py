"""doctor's memory of a training step against the trainers themselves, run on the meta device at real sizes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lpo.config import check_params
from lpo.config.presets import merge
from lpo.config.reader import parse_yaml
from lpo.doctor.autocast import autocast_as
from lpo.doctor.memory import META, Alive, _fused, attention_as, bytes_of, configured, of_reward
from lpo.families import DTYPES, load_family
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.reward.trainer import Pairs, RewardTrainer


class OnDevice(Alive):
    """What the host makes on its way to the device doesn't count."""

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            super().count(storage)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3"])
def test_a_training_step_of_a_reward_takes_what_doctor_says(
    repository: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, gradients, both moments of Adam, copies in half precision and activations: within 5 %, never below."""
    text = merge((repository / "params.yaml").read_text(), (repository / f"lpo/presets/{name}.yaml").read_text())[0]
    params = check_params(parse_yaml(text, "merged"), "merged")
    config = replace(params.reward, batch_size=params.reward.micro_batch_size)
    params = replace(params, reward=config)
    backbone = load_family(configured(params.model), True, config.layer, torch.float32, META)
    monkeypatch.setattr(
        type(backbone), "tokenize", lambda self, words: torch.zeros(len(words), self.token_columns).long()
    )
    projection = "none" if config.text_projection == "none" else "random"
    with META:
        model = LatentRewardModel(backbone, config.embedding_dim, config.guidance_scale, config.features, projection)
    model.requires_grad_(False)
    shape, pairs = backbone.latent_shape, config.batch_size
    latents = SimpleNamespace(
        captions=[str(i) for i in range(pairs)], shape=shape,
        moments=lambda places: torch.zeros(len(places), 2 * shape[0], *shape[1:]),
    )  # fmt: skip
    trainer = RewardTrainer(model, latents, config, seed=0)  # type: ignore[arg-type]
    monkeypatch.setattr(trainer, "autocast", nullcontext)
    places, ones = np.zeros((pairs, 2), int), torch.ones(pairs)
    stored = Pairs(places, places, torch.arange(pairs), torch.stack([ones, 1 - ones], 1), ones)
    with autocast_as(DTYPES[config.dtype]), attention_as(_fused), OnDevice() as alive:
        trainer.step(stored, 0)
        trainer.step(stored, 1)  # beside the moments that the first step made
    taken, said = bytes_of(model) + alive.peak, of_reward(params).total
    assert taken <= said <= 1.05 * taken
