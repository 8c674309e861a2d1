"""Ours beside the published recipe: one iteration, a rollout and the updates on its pairs.

`Ours` calls what the stage `lpo` calls: `explore` and `PolicyTrainer.learn`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import models
from benchmarks.meters import Flops, LiveBytes, seconds, size_of
from benchmarks.published import Published
from lpo.config import Lpo
from lpo.families.conditioning import Conditioning
from lpo.families.sd import SD
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.checkpoint import generator
from lpo.train.policy import PolicyTrainer
from lpo.train.rollout import StepPairs, explore

SHARE = 4  # one pair of so many is kept


class Ours:
    """The stages' code on a family and a reward."""

    def __init__(self, family: SD, reward: LatentRewardModel, config: Lpo, seed: int) -> None:
        self.family, self.reward, self.config = family, reward, config
        self.trainer = PolicyTrainer(family, reward, config, seed)

    def rollout(self, prompts: list[str], draws: torch.Generator) -> tuple[StepPairs, Conditioning]:
        made, conditioning = explore(self.family, self.reward, prompts, self.config, draws)
        if self.family.device.type == "meta":  # no scores there: a quarter of the rows stands for those kept
            return made.pairs[torch.arange(len(made.pairs) // SHARE, device="meta")], conditioning
        return made.pairs[made.keep.flatten()], conditioning

    def update(self, pairs: StepPairs, conditioning: Conditioning, draws: torch.Generator) -> torch.Tensor:
        order = torch.randperm(len(pairs), generator=draws)
        parts = order.tensor_split(max(1, round(len(pairs) / self.config.batch_size)))
        return torch.cat([self.trainer.learn(pairs[p.to(pairs.t.device)], conditioning)[0] for p in parts])

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [self.family.unet, self.family.text_encoder, self.reward]
