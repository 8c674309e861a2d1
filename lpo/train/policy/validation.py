"""Validation of the policy: how much an adapter gains over the base on validation prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from lpo import resume
from lpo.config import Guard, Params, SamplerSettings, Score
from lpo.families.family import Family
from lpo.files import folder_hash, replacing
from lpo.images import to_tensor, to_uint8
from lpo.rewards.protocol import Reward
from lpo.sampling.generate import sample
from lpo.scorers.embedded import Scorers
from lpo.scorers.judges import Scorer
from lpo.scorers.published import NAMES, Published, load_scorers, to_pictures
from lpo.train.common import distributed
from lpo.train.policy.load import blind_judge

SEED_OF_VALIDATION, SEED_OF_DIVERSITY = 10_000, 20_000
SHOWN = 8  # validation prompts whose pictures a tracker gets
LARGEST = 256  # pixels of their side


def of_all(scores: list[torch.Tensor]) -> np.ndarray:
    """Scores of the prompts of all processes, in their order, from this one's parts."""
    mine = torch.cat([part.cpu() for part in scores]) if scores else torch.empty(0)
    return np.asarray(distributed.joined_rows(mine).numpy())


class Validation:
    """What an adapter gained over the base on validation prompts, in standard deviations of the base's scores.

    validation  mean over the scores that `tune.validation_scorers` names; it chooses the checkpoint. Not the share of
                prompts won: a shift that is tiny and the same everywhere wins nearly all of them.
    reward      of the reward that is climbed, on finished latents: what the guard compares validation with
    blind       of one more scorer, `tune.blind`: it chooses nothing, so it can still show what the others were tuned to
    diversity   mean distance between pictures of one prompt over seeds, divided by the base's own

    Several processes share the prompts: each draws, decodes and scores its own, and all get the figures of all.

    `blind` is one of the three scorers, which then chooses nothing, or the name of the published judge that `judge` is.

    The judge has no say here: what chooses the checkpoint is not what the evaluation measures.
    """

    def __init__(
        self, family: Family, reward: Reward, load: Callable[[], Scorers | Published], names: Sequence[str],
        prompts: list[str], sampler: SamplerSettings, score_batch_size: int, guard: Guard, folder: Path,
        blind: str | None = None, judge: Callable[[], Scorer | None] = lambda: None,
    ) -> None:  # fmt: skip
        """load, judge: give the scorers; they are in memory during a validation only. names: of those that choose.

        folder: for the base's latents. It belongs to the model, the sampler and the prompts, so that what is tuned
        afterwards, with whatever settings, finds them there.
        """
        self.blind, self.judge = blind, judge
        self.family, self.reward, self.load, self.names = family, reward, load, names
        self.prompts, self.sampler, self.score_batch_size, self.guard = prompts, sampler, score_batch_size, guard
        self.text, self.null = reward.encode_prompts(prompts), reward.encode_prompts([""])
        self.group = [] if guard.action == "off" else [p for p in prompts[: guard.prompts] for _ in range(guard.seeds)]
        with family.reference():
            self.base = self.scores(self.of_base(folder / "validation.safetensors", prompts, SEED_OF_VALIDATION))
            file = folder / "diversity.safetensors"
            self.spread = self.diversity(self.of_base(file, self.group, SEED_OF_DIVERSITY, guard.seeds))
        self.before = self.shown

    def of_base(self, file: Path, prompts: list[str], first_seed: int, of: int = 1) -> torch.Tensor:
        """`draw` of the base, from the file if the first process has it."""
        held = load_file(file) if distributed.is_first() and file.exists() else None
        if distributed.from_first(held is not None):
            latents = distributed.tensors_from_first(held)["latents"]
            mine = distributed.share(latents.unflatten(0, (len(latents) // of, of))).flatten(0, 1)
            return mine.to(self.family.device)
        latents = self.draw(prompts, first_seed, of)
        every = distributed.joined_rows(latents)
        if distributed.is_first():
            with replacing(file) as unfinished:
                save_file({"latents": every.contiguous()}, unfinished)
        return latents

    def draw(self, prompts: list[str], first_seed: int, of: int = 1) -> torch.Tensor:
        """Finished latents (N, C, h, w) of this process's prompts, one seed after the other.

        of: every so many of them stay together.
        """
        seeds = list(range(first_seed, first_seed + len(prompts)))
        parts = [torch.empty(0, *self.family.latent_shape, device=self.family.device, dtype=self.family.dtype)]
        for rows, counts in distributed.batches(len(prompts), self.sampler.batch_size, of):
            drawn = sample(self.family, [prompts[i] for i in rows], [seeds[i] for i in rows], self.sampler)
            parts += [drawn] if counts else []
        return torch.cat(parts)

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [-1, 1], rounded as pictures in files are."""
        parts = [part for part in latents.split(self.sampler.batch_size) if len(part)]
        if not parts:  # of a process without prompts
            return torch.empty(0, 3, self.family.pixels, self.family.pixels)
        return to_tensor(np.concatenate([to_uint8(self.family.decode(part)) for part in parts]))

    @torch.no_grad()
    def scores(self, latents: torch.Tensor) -> dict[str, np.ndarray]:
        """Of one latent a prompt, by scorer; "reward" is the reward that is climbed.

        latents: of this process's prompts. The scores are those of all prompts, in their order.
        """
        mine = distributed.share(torch.arange(len(self.prompts))).tolist()
        prompts, size = [self.prompts[i] for i in mine], self.score_batch_size
        batches = [slice(i, i + size) for i in range(0, len(prompts), size)]
        pictures, scorers = self.pictures(latents), self.load()
        self.shown = to_uint8(distributed.joined_rows(pictures[[i < SHOWN for i in mine]]))
        parts = [scorers.score(pictures[b], prompts[b]) for b in batches]
        found = {name: of_all([part[name] for part in parts]) for name in self.names}
        if self.blind is not None and self.blind not in found:
            judge = self.judge()
            assert judge is not None
            found[self.blind] = of_all([judge.score(to_pictures(pictures[b]), prompts[b]) for b in batches])
        return found | {"reward": of_all(self.rewards(latents))}

    def rewards(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """Of this process's prompts, in parts; all processes run the reward equally often."""
        found, start = [], 0
        for rows, counts in distributed.batches(len(self.prompts), self.sampler.batch_size):
            part = latents[start : start + len(rows)] if counts else latents.new_zeros(1, *self.family.latent_shape)
            on_device = rows.to(latents.device)
            score = self.reward.score(part, torch.ones_like(on_device), self.text[on_device], self.null)
            found += [score] if counts else []
            start += len(rows) * counts
        return found

    def diversity(self, latents: torch.Tensor) -> float:
        """Root mean square difference of two pictures of one prompt, mean over pairs of seeds and prompts."""
        if not self.group:
            return 1.0
        seeds = self.guard.seeds
        pictures = self.pictures(latents).flatten(1).unflatten(0, (len(latents) // seeds, seeds))
        first, second = torch.triu_indices(seeds, seeds, offset=1)
        distance = (pictures[:, first] - pictures[:, second]).square().mean(2).sqrt()
        return float(distributed.joined_rows(distance).mean())

    def before_after(self) -> np.ndarray:
        """Pictures of the first prompts, (2 H, n W, 3): the base above, the adapter validated last below."""
        every = -(-self.shown.shape[1] // LARGEST)  # pixel
        rows = [np.concatenate(list(row[:, ::every, ::every]), axis=1) for row in (self.before, self.shown)]
        return np.concatenate(rows)

    def __call__(self) -> dict[str, float]:
        now = self.scores(self.draw(self.prompts, SEED_OF_VALIDATION))
        gain = {k: (now[k] - self.base[k]).mean() / self.base[k].std() for k in now}
        reward = float(gain.pop("reward"))
        blind = {} if self.blind is None else {"blind": float(gain.pop(self.blind))}
        diversity = self.diversity(self.draw(self.group, SEED_OF_DIVERSITY, self.guard.seeds)) / self.spread
        return {"validation": float(np.mean(list(gain.values()))), "reward": reward, "diversity": diversity} | blind


def scorers_of_validation(params: Params) -> Score:
    """The scorers that choose the adapter: those of `tune.validators`, else those of `score`."""
    return replace(params.score, scorers=params.tune.validators or params.score.scorers)


def validation(params: Params, family: Family, reward: Reward, prompts: list[str]) -> Validation:
    """The validation that params.yaml describes, the base's latents in a folder of .checkpoints that is theirs."""
    sampler, guard, device, blind = params.evaluate.sampler, params.tune.guard, family.device, params.tune.blind
    names = [name for name in NAMES if name in {*params.tune.validation_scorers, blind}]
    identity = {
        "model": asdict(params.model), "base": folder_hash(params.model.path), "sampler": asdict(sampler),
        "prompts": prompts, "group": [guard.action == "off", guard.prompts, guard.seeds],
    }  # fmt: skip
    return Validation(
        family, reward, partial(load_scorers, scorers_of_validation(params), device, names), names, prompts, sampler,
        params.score.batch_size, guard, resume.folder("validation", identity), blind,
        partial(blind_judge, params.tune, params.evaluate.judge_models, params.score.models, device),
    )  # fmt: skip
