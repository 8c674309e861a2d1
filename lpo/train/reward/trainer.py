"""Training of a step reward on stored latents: the latent reward model (LPO paper, section 3.2), or SPO's.

One step: a batch of pairs, one t a pair, noise per image (or shared); both noisy latents are scored under the pair's
caption; L = mean of weight * loss, with preference.losses.pairwise_loss or thurstone_loss by `likelihood`. Departures
from the published recipe: t ~ U[0, T) unless `timesteps: grid` (decisions.md 7), latents stored beforehand (15), the
checkpoint with the best mean accuracy over timestep bins is kept (8), weights normalised over the data set (21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lpo import random
from lpo.config import RewardModel, Spm
from lpo.data.latents import Latents, sample_latents
from lpo.families import DTYPES
from lpo.families.conditioning import Conditioning
from lpo.preference.losses import pairwise_loss, thurstone_loss
from lpo.rewards.dina import DinaReward
from lpo.rewards.ensemble import ensemble_score
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import StepPreferenceModel
from lpo.tracking import Tracker
from lpo.train.common import checkpoint, distributed
from lpo.train.common.ahead import Ahead, pinned
from lpo.train.common.loop import adamw, apply_gradients, check_number, warmup_share
from lpo.train.common.loss_scale import LossScale
from lpo.train.reward.pairs import Pairs, of_all, verdicts

BINS = 10  # of the timestep axis, in validation


class RewardTrainer:
    """The state of a training: model, optimiser, best weights so far. `run` goes from wherever it stands to the end."""

    def __init__(
        self, model: LatentRewardModel | StepPreferenceModel | DinaReward, latents: Latents, config: RewardModel | Spm,
        seed: int,
    ) -> None:  # fmt: skip
        self.model, self.latents, self.config, self.seed = model, latents, config, seed
        self.transition = model.backbone.transition(1.0)
        self.device = model.backbone.device
        self.weights = [p.requires_grad_(True) for p in model.trained(config.trainable)]
        ids = {id(weight) for weight in self.weights}
        named = model.named_parameters()
        self.trained: dict[str, torch.Tensor] = {name: weight for name, weight in named if id(weight) in ids}
        self.optimizer = adamw(self.weights, config.learning_rate, config.weight_decay)
        self.scale = LossScale(DTYPES[config.dtype])
        self.ahead: Ahead[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = Ahead(self.device)
        self.tokens, self.null = model.backbone.tokenize(latents.captions), model.backbone.tokenize([""])
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}  # of what trains, in host memory
        self.best_accuracy, self.misses = -1.0, 0

    def moments(self, pairs: Pairs, rows: torch.Tensor) -> torch.Tensor:
        """Stored moments of the first images of pairs `rows`, then of the second ones, (2 B, 2 C, h, w)."""
        return torch.cat([self.latents.moments(p[rows.numpy()]) for p in (pairs.places_0, pairs.places_1)])

    def noised(
        self, pairs: Pairs, rows: torch.Tensor, t: torch.Tensor, generator: torch.Generator, kept: torch.Tensor
    ) -> torch.Tensor:
        """Latents (2, K, C, h, w) of both images of pairs `rows[kept]`, noised to t (B,), on the CPU.

        The numbers of all B rows are drawn, whichever are kept, so that each gets its own.
        """
        shape = self.latents.shape
        posterior = torch.randn((2, len(rows), *shape), generator=generator)[:, kept].flatten(0, 1)
        x0 = self.model.backbone.scale(sample_latents(self.moments(pairs, rows[kept]), posterior))
        copies = 1 if self.config.shared_noise else 2
        noise = torch.randn((copies, len(rows), *shape), generator=generator)[:, kept]
        times = t[kept].repeat(2)
        noisy = self.transition.add_noise(x0, noise.expand(2, *noise.shape[1:]).flatten(0, 1), times)
        return noisy.to(self.model.backbone.dtype).unflatten(0, (2, len(kept)))

    def scores(
        self, pairs: Pairs, rows: torch.Tensor, t: torch.Tensor, noisy: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B,), (B,) of `noised` latents of pairs `rows` at timesteps t (B,)."""
        with self.autocast():
            conditioning, null = self.text(pairs.captions[rows])
            latents = noisy.to(self.device, non_blocking=True).flatten(0, 1)
            score = self.model.score(latents, torch.cat([t, t]).to(self.device), conditioning, null)
        first, second = score.chunk(2)
        return first, second

    def autocast(self) -> torch.autocast:
        """The forward pass in `dtype`, in training and in every measurement alike."""
        dtype = DTYPES[self.config.dtype]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def text(self, captions: torch.Tensor) -> tuple[Conditioning, Conditioning]:
        """Conditioning of (first images, second images) of pairs with these caption rows (B,), and the empty prompt."""
        unique, inverse = captions.unique(return_inverse=True)
        ids = torch.cat([self.null, self.tokens[unique]])
        text = self.model.encode_tokens(ids, ["", *(self.latents.captions[i] for i in unique.tolist())])
        return text[1 + torch.cat([inverse, inverse]).to(self.device)], text[:1]

    def timesteps(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """t ~ U{0, ..., T - 1}, or of the published grid {1, 51, ..., 951}."""
        if self.config.timesteps == "grid":
            return 1 + 50 * torch.randint(20, (n,), generator=generator)
        return torch.randint(self.transition.num_train_timesteps, (n,), generator=generator)

    @property
    def name(self) -> str:
        """The section of params.yaml."""
        return "spm" if isinstance(self.config, Spm) else "reward"

    def where(self, step: int) -> str:
        return f"{self.name}: step {step + 1} of {self.config.steps}"

    def batch(self, pairs: Pairs, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (B,) of a step, their timesteps (B,), and noised latents of `distributed.batches`, all on the CPU."""
        size, per_epoch = self.config.batch_size, max(len(pairs) // self.config.batch_size, 1)
        order = torch.randperm(len(pairs), generator=random.generator(self.seed, "lrm epoch", step // per_epoch))
        rows = order[step % per_epoch * size :][:size]
        generator = random.generator(self.seed, "lrm step", step)
        t = self.timesteps(len(rows), generator)
        kept = torch.cat([part for part, _ in distributed.batches(len(rows), self.config.micro_batch_size)])
        return rows, t, pinned(self.noised(pairs, rows, t, generator, kept))

    def step(self, pairs: Pairs, step: int) -> torch.Tensor:
        """One optimiser step; this process's part of the loss."""
        config = self.config
        rows, t, noisy = self.ahead(lambda k: self.batch(pairs, k), step, config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        parts = distributed.batches(len(rows), config.micro_batch_size)
        latents = noisy.split([len(part) for part, _ in parts], dim=1)
        for (part, counts), noised in zip(parts, latents, strict=True):
            loss = self.loss(pairs, rows[part], t[part], noised)
            share = counts * len(part) / len(rows)
            self.scale.scaled(loss * share).backward()
            total += loss.detach() * share
        distributed.sum_gradients(self.weights)
        share = warmup_share(step, config.steps, config.warmup_steps, config.learning_rate_schedule)
        learning_rate = config.learning_rate * share
        apply_gradients(self.optimizer, learning_rate, config.max_grad_norm, self.where(step), self.name, self.scale)
        return total

    def loss(self, pairs: Pairs, rows: torch.Tensor, t: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """The loss of pairs `rows`, ()."""
        config = self.config
        first, second = self.scores(pairs, rows, t, noisy)
        labels, weights = pairs.labels[rows].to(self.device), pairs.weights[rows].to(self.device)
        if config.likelihood == "thurstone":
            level = self.transition.noise_level(t).to(self.device)
            return thurstone_loss(first, second, labels[:, 0], labels[:, 1], weights, level, config.variance_offset)
        return pairwise_loss(first, second, labels[:, 0], labels[:, 1], weights)

    def run(self, train: Pairs, validation: Pairs, folder: Path, tracker: Tracker | None) -> None:
        """Train to the end or to `patience` validations without improvement; the best weights are left in the model.

        Raises:
            NotFinite: where a loss, a gradient or a weight is NaN or infinite; the last good checkpoint stays.
        """
        config = self.config
        done = self.resume(folder)
        bar = tqdm(range(done, config.steps), initial=done, total=config.steps, desc=self.name, mininterval=2,
                   disable=not distributed.is_first())  # fmt: skip
        for step in bar:
            if self.misses >= config.patience:
                break
            found = self.step(train, step)
            if step % 25 == 0:
                loss = sum(distributed.gathered(found.item()))
                check_number(loss, "loss", self.where(step), self.name)
                bar.set_postfix(loss=f"{loss:.3f}", best=f"{self.best_accuracy:.3f}")
                self.history.append({"step": step, "loss": loss, **self.scale.figures})
                if tracker is not None:
                    tracker.log(step, {f"reward/{k}": v for k, v in ({"loss": loss} | self.scale.figures).items()})
            last = step + 1 == config.steps
            if (step + 1) % config.validate_every == 0 or last:
                right = self.accuracy(validation)
                accuracy = float(np.nanmean(right))
                self.history.append({"step": step + 1, "accuracy": accuracy})
                if tracker is not None:
                    width = self.transition.num_train_timesteps // len(right)
                    right_at = {f"t{k * width:04d}": float(np.nanmean(row)) for k, row in enumerate(right)}
                    by_t = {f"reward/by_timestep/accuracy/{name}": value for name, value in right_at.items()}
                    tracker.log(step, {"reward/accuracy": accuracy} | by_t)
                self.misses += 1
                if accuracy > self.best_accuracy:
                    self.best_accuracy, self.misses = accuracy, 0
                    self.best = {k: v.detach().to("cpu", copy=True) for k, v in self.trained.items()}
            if (step + 1) % config.checkpoint_every == 0 or last:
                self.save(folder, step + 1)
        self.load(self.best)

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put weights of `trained` in; what is frozen is nobody's to change."""
        for name, weight in self.trained.items():
            weight.copy_(state[name])

    @torch.no_grad()
    def accuracy(self, pairs: Pairs, bins: int = BINS, batch_size: int = 250) -> np.ndarray:
        """Right (1), wrong (0) or tie (NaN) of every pair in every timestep bin, (bins, pairs).

        In bin k every pair is scored at one t drawn uniformly from [k T / bins, (k + 1) T / bins), always the same.
        batch_size: pairs whose noise is drawn together; `micro_batch_size` of them are scored at a time. Several
        processes share the pairs, and all get the whole result.
        """
        steps = self.transition.num_train_timesteps
        self.model.eval()
        result = np.full((bins, len(pairs)), np.nan)
        for k in range(bins):
            for start in range(0, len(pairs), batch_size):
                rows = torch.arange(start, min(start + batch_size, len(pairs)))
                generator = random.generator(self.seed, f"lrm validation {k}", start)
                t = torch.randint(k * steps // bins, (k + 1) * steps // bins, (len(rows),), generator=generator)
                parts = distributed.batches(len(rows), self.config.micro_batch_size)
                noisy = self.noised(pairs, rows, t, generator, torch.cat([part for part, _ in parts]))
                latents = noisy.split([len(part) for part, _ in parts], dim=1)
                for (part, counts), noised in zip(parts, latents, strict=True):
                    mine = rows[part]
                    first, second = self.scores(pairs, mine, t[part], noised)
                    if counts:
                        result[k, mine.numpy()] = verdicts(first - second, pairs.labels[mine])
        return of_all(result)

    @torch.no_grad()
    def ensemble_accuracy(
        self, pairs: Pairs, timesteps: Sequence[int], draws: int, batch_size: int = 250
    ) -> np.ndarray:
        """Right, wrong or tie of every pair, (pairs,), by the mean score over timesteps and draws of noise.

        Several processes share the pairs, and all get the whole result.
        """
        self.model.eval()
        result = np.full(len(pairs), np.nan)
        for start in range(0, len(pairs), batch_size):
            count = min(batch_size, len(pairs) - start)
            for part, counts in distributed.batches(count, self.config.micro_batch_size):
                rows = start + part
                noise = random.generator(self.seed, "lrm ensemble", start)  # of all parts alike
                gap = self.ensemble_gap(pairs, rows, timesteps, draws, noise)
                if counts:
                    result[rows.numpy()] = verdicts(gap, pairs.labels[rows])
        return of_all(result)

    def ensemble_gap(
        self, pairs: Pairs, rows: torch.Tensor, timesteps: Sequence[int], draws: int, noise: torch.Generator
    ) -> torch.Tensor:
        """Score of the first image less that of the second, (B,), of pairs `rows`, as ensembles."""
        moments, dtype = self.moments(pairs, rows), self.model.backbone.dtype
        x0 = self.model.backbone.scale(sample_latents(moments, torch.zeros(len(moments), *self.latents.shape)))
        with self.autocast():
            conditioning, null = self.text(pairs.captions[rows])
            score = ensemble_score(
                self.model, self.transition, x0.to(self.device, dtype), timesteps, draws, conditioning, null, noise
            )
        first, second = score.cpu().chunk(2)
        return first - second

    def save(self, folder: Path, step: int) -> None:
        meta = {"history": self.history, "best_accuracy": self.best_accuracy, "misses": self.misses}
        meta |= self.scale.state()
        states = {"model": self.trained, "best": self.best}
        checkpoint.save_training(folder, step, self.optimizer, states, meta)

    def resume(self, folder: Path) -> int:
        found = checkpoint.load_training(folder, self.optimizer)
        if found is None:
            return 0
        self.load(found.state("model"))
        self.best = found.state("best")
        meta = found.meta
        self.history, self.best_accuracy, self.misses = meta["history"], meta["best_accuracy"], meta["misses"]
        self.scale.load(meta)
        return found.step
