"""A reward that looks ahead: it scores noisy latents by the x_0 that the policy predicts from them.

    S'(p, x_s, s) = mean over t' of S(p, add_noise(x0_hat(x_s, s), eps', t'), t')

Models of few steps have only noisy x_s before their last step, and a latent reward is weak there. The prediction takes
one further pass of the policy for each candidate. eps' is the same for all candidates, so that it does not rank them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lpo.diffusion.transitions import DDIM, Transition
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.rewards.protocol import Reward

OWN, POOLED = "policy.", "reward pooled"


@dataclass
class LookAhead:
    """family: the policy, as it stands when a score is taken. null: what its guidance is taken against.

    timesteps: t'. noise: (len(timesteps), C, h, w), eps'.
    """

    reward: Reward
    family: Family
    transition: Transition
    null: Conditioning
    guidance_scale: float
    timesteps: Sequence[int]
    noise: torch.Tensor
    space: str = "latent"

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Of the reward, and under names of their own the tensors of the policy."""
        theirs, own = self.reward.encode_prompts(prompts), self.family.encode_prompts(prompts)
        mine = {f"{OWN}{name}": tensor for name, tensor in own.tensors.items()}
        return Conditioning({**theirs.tensors, **mine, POOLED: theirs.pooled}, own.pooled)

    def score(self, latents: torch.Tensor, s: torch.Tensor, text: Conditioning, null: Conditioning) -> torch.Tensor:
        """(B,) scores of latents (B, C, h, w) at s (B,). Latents after the last step are x_0 themselves."""
        ended = s < 0 if isinstance(self.transition, DDIM) else s <= 0
        own = Conditioning({k.removeprefix(OWN): v for k, v in text.tensors.items() if k.startswith(OWN)}, text.pooled)
        prediction = self.family.guided(latents, s.clamp_min(0), own, self.null, self.guidance_scale)
        predicted, _ = self.transition.pred_x0_eps(prediction, latents, s.clamp_min(0))
        x_0 = torch.where(ended.view(-1, 1, 1, 1), latents, predicted).to(latents.dtype)
        words, empty = _of_reward(text), _of_reward(null)
        found = []
        for at, eps in zip(self.timesteps, self.noise, strict=True):
            t = torch.full_like(s, at)
            found.append(self.reward.score(self.transition.add_noise(x_0, eps.expand_as(x_0), t), t, words, empty))
        return torch.stack(found).mean(0)


def _of_reward(both: Conditioning) -> Conditioning:
    tensors = {k: v for k, v in both.tensors.items() if not k.startswith(OWN) and k != POOLED}
    return Conditioning(tensors, both.tensors[POOLED])
