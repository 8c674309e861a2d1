"""Validation of the policy: how much an adapter gains over the base on validation prompts."""

from __future__ import annotations

import numpy as np
import torch

from lpo.config import Guard, SamplerSettings
from lpo.families.family import Family
from lpo.images import to_tensor, to_uint8
from lpo.rewards.protocol import Reward
from lpo.sampling.generate import sample
from lpo.scorers.embedded import Scorers
from lpo.scorers.judges import Scorer
from lpo.scorers.published import Published, to_pictures
from lpo.train.common import distributed

SEED_OF_VALIDATION, SEED_OF_DIVERSITY = 10_000, 20_000
SHOWN = 8  # validation prompts whose pictures a tracker gets
LARGEST = 256  # pixels of their side


class Validation:
    """What an adapter gained over the base on validation prompts, in standard deviations of the base's scores.

    validation  mean over three scorers; it chooses the checkpoint. Not the share of prompts won: a shift that is tiny
                and the same everywhere wins nearly all of them.
    reward      of the reward that is climbed, on finished latents: what the guard compares validation with
    blind       of one more scorer, `tune.blind`: it chooses nothing, so it can still show what the others were tuned to
    diversity   mean distance between pictures of one prompt over seeds, divided by the base's own

    `blind` is one of the three scorers, which then chooses nothing, or the name of the published judge that `judge` is.

    The judge has no say here: what chooses the checkpoint is not what the evaluation measures.
    """

    def __init__(
        self, family: Family, reward: Reward, scorers: Scorers | Published, prompts: list[str],
        sampler: SamplerSettings, score_batch_size: int, guard: Guard, blind: str | None = None,
        judge: Scorer | None = None,
    ) -> None:  # fmt: skip
        self.blind, self.judge = blind, judge
        self.family, self.reward, self.scorers, self.prompts = family, reward, scorers, prompts
        self.sampler, self.score_batch_size, self.guard = sampler, score_batch_size, guard
        self.text, self.null = reward.encode_prompts(prompts), reward.encode_prompts([""])
        with family.reference():
            self.base, self.spread = self.scores(), self.diversity()
        self.before = self.shown

    def draw(self, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        """Finished latents (N, C, h, w); each of several processes draws its share."""
        parts = [torch.empty(0, *self.family.latent_shape, device=self.family.device, dtype=self.family.dtype)]
        for rows, counts in distributed.batches(len(prompts), self.sampler.batch_size):
            drawn = sample(self.family, [prompts[i] for i in rows], [seeds[i] for i in rows], self.sampler)
            parts += [drawn] if counts else []
        return torch.cat(distributed.gathered(torch.cat(parts).cpu())).to(self.family.device)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [-1, 1], rounded as pictures in files are."""
        parts = latents.split(self.sampler.batch_size)
        return to_tensor(np.concatenate([to_uint8(self.family.decode(part)) for part in parts]))

    @torch.no_grad()
    def scores(self) -> dict[str, np.ndarray]:
        latents = self.draw(self.prompts, [SEED_OF_VALIDATION + i for i in range(len(self.prompts))])
        pictures = self.pictures(latents)
        self.shown = to_uint8(pictures[:SHOWN])
        size = self.score_batch_size
        parts = [
            self.scorers.score(pictures[i : i + size], self.prompts[i : i + size])
            for i in range(0, len(self.prompts), size)
        ]
        found = {k: torch.cat([part[k] for part in parts]).numpy() for k in parts[0]}
        if self.judge is not None and self.blind is not None:
            batches = range(0, len(self.prompts), size)
            seen = [self.judge.score(to_pictures(pictures[i : i + size]), self.prompts[i : i + size]) for i in batches]
            found[self.blind] = torch.cat([part.cpu() for part in seen]).numpy()
        t = torch.full((len(latents),), 1, device=latents.device)
        return found | {"reward": self.reward.score(latents, t, self.text, self.null).cpu().numpy()}

    def diversity(self) -> float:
        """Root mean square difference of two pictures of one prompt, mean over pairs of seeds and prompts."""
        guard = self.guard
        if guard.action == "off":
            return 1.0
        prompts = [prompt for prompt in self.prompts[: guard.prompts] for _ in range(guard.seeds)]
        seeds = [SEED_OF_DIVERSITY + i for i in range(len(prompts))]
        pictures = self.pictures(self.draw(prompts, seeds)).flatten(1).unflatten(0, (-1, guard.seeds))
        first, second = torch.triu_indices(guard.seeds, guard.seeds, offset=1)
        return float((pictures[:, first] - pictures[:, second]).square().mean(2).sqrt().mean())

    def before_after(self) -> np.ndarray:
        """Pictures of the first prompts, (2 H, n W, 3): the base above, the adapter validated last below."""
        every = -(-self.shown.shape[1] // LARGEST)  # pixel
        rows = [np.concatenate(list(row[:, ::every, ::every]), axis=1) for row in (self.before, self.shown)]
        return np.concatenate(rows)

    def __call__(self) -> dict[str, float]:
        now = self.scores()
        gain = {k: (now[k] - self.base[k]).mean() / self.base[k].std() for k in now}
        reward = float(gain.pop("reward"))
        blind = {} if self.blind is None else {"blind": float(gain.pop(self.blind))}
        diversity = self.diversity() / self.spread
        return {"validation": float(np.mean(list(gain.values()))), "reward": reward, "diversity": diversity} | blind
