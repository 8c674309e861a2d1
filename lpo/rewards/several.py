"""Several rewards at once, each normalised on its own (lpo/preference/advantages.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from lpo.families.conditioning import Conditioning
from lpo.rewards.protocol import Reward


@dataclass
class SeveralRewards:
    """Rewards and their weights by name.

    As a `Reward` it is its first one: raw scores of different rewards have different units and cannot be added, and
    what normalises them, a group of candidates, is known to a rollout only. So the guard of tune watches the first one.

    figures: by reward, what the last rollout saw. score: the mean of its raw scores. agreement: the share of groups
    where it prefers the best candidate by all rewards to the worst one, 0.5 where it scores both equally.
    """

    rewards: dict[str, Reward]
    weights: dict[str, float]
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def first(self) -> Reward:
        return next(iter(self.rewards.values()))

    @property
    def space(self) -> str:
        """ "pixel" if one of them looks at pictures."""
        return "pixel" if any(reward.space == "pixel" for reward in self.rewards.values()) else "latent"

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        return self.first.encode_prompts(prompts)

    def score(
        self, latents: torch.Tensor, t: torch.Tensor, conditioning: Conditioning, null: Conditioning
    ) -> torch.Tensor:
        return self.first.score(latents, t, conditioning, null)

    def note(self, scores: torch.Tensor, total: torch.Tensor) -> None:
        """Keep the figures of raw scores (R, ..., K) and of what decided, (..., K)."""
        best, worst = total.argmax(-1, keepdim=True), total.argmin(-1, keepdim=True)
        for name, own in zip(self.rewards, scores, strict=True):
            agreement = ((own.gather(-1, best) - own.gather(-1, worst)).sign() + 1) / 2
            self.figures[name] = {"score": float(own.mean()), "agreement": float(agreement.mean())}


def each_of(reward: Reward) -> tuple[list[Reward], torch.Tensor]:
    """The rewards that it consists of, R, and their weights (R,); of a single one itself, and 1."""
    if not isinstance(reward, SeveralRewards):
        return [reward], torch.ones(1)
    return list(reward.rewards.values()), torch.tensor([reward.weights[name] for name in reward.rewards])


def tracked(reward: Reward) -> dict[str, float]:
    """Figures of several rewards as a tracker takes them, such as tune/reward/data/reward/agreement."""
    if not isinstance(reward, SeveralRewards):
        return {}
    return {f"tune/reward/{name}/{key}": v for name, row in reward.figures.items() for key, v in row.items()}
