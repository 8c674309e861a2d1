"""Training of the policy, a LoRA, by the loss of a method (methods.py), with AdamW.

It learns from steps of rollouts, from stored pairs and votes, or from finished latents (steps.py).

    lpo:  L = w(t) (-log sigmoid(beta (log r_w - log r_l))),  r = clamp(p_theta(x_s | x_t) / p_ref(x_s | x_t), 1 -+ eps)

w is 1, or mean(g) / g(t) with `timestep_weights: balanced` (step_gain in lpo/diffusion/transitions.py). To any loss of
steps `kl_weight` adds the KL divergence of the step's two Gaussians, |mean - mean_ref|^2 / (2 std^2), in nats.

The candidates of a step share x_t, t and prompt, so one policy and one reference forward give all log densities
(decisions.md 3); the reference is the same U-Net with its adapter off (4). What is validated, kept and saved is the
exponential moving average of the adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lpo import random
from lpo.config import Tune
from lpo.diffusion.transitions import step_gain
from lpo.errors import LpoError
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.rewards.protocol import Reward
from lpo.rewards.several import SeveralRewards, tracked
from lpo.tracking import Tracker
from lpo.train.common import checkpoint, distributed
from lpo.train.common.loop import adamw, apply_gradients, check_number, update_ema
from lpo.train.common.loss_scale import LossScale
from lpo.train.common.offload import away
from lpo.train.policy import overoptimisation
from lpo.train.policy.finished import State, finished, follow
from lpo.train.policy.methods import METHODS
from lpo.train.policy.offline import Stored, draw, noise_errors
from lpo.train.policy.rollout import idle, log_probs, mean_gain, rollout
from lpo.train.policy.statistics import StepStatistics, by_timestep, tracked_by_timestep
from lpo.train.policy.steps import Finished, NoisyGroups, Steps

log = logging.getLogger(__name__)

BASE_VALUE = 0.0  # of `validate`, at the base itself

Batch = Steps | NoisyGroups | Finished


class PolicyTrainer:
    """The state of one training: adapter, optimiser, EMA, best adapter so far, history (one entry a rollout).

    `stored` is what a method of stored pairs or votes learns from, instead of rollouts.
    """

    def __init__(self, family: Family, reward: Reward, config: Tune, seed: int, stored: Stored | None = None) -> None:
        self.family, self.reward, self.config, self.seed = family, reward, config, seed
        self.method, self.stored = METHODS[config.method], stored
        self.weights = family.add_lora(config.lora_rank, seed)
        self.optimizer = adamw(self.weights, config.learning_rate, config.weight_decay)
        self.scale = LossScale(family.dtype)
        self.trained = family.lora_state()  # shares its memory with the weights: made once, not after every step
        self.ema = {k: v.clone() for k, v in self.trained.items()}
        self.best = {k: v.clone() for k, v in self.ema.items()}
        self.best_value, self.updates = BASE_VALUE, 0
        self.history: list[dict[str, Any]] = []
        self.null = family.null()
        self.transition = family.transition(config.eta).to(family.device)
        self.old: State | None = None  # the slow adapter that draws the finished latents of nft and dgpo
        if self.method.finished:
            self.old = {k: v.clone() for k, v in self.ema.items()}
        balanced = config.timestep_weights == "balanced" and self.method.batch == "steps"
        self.mean_gain = mean_gain(family, config) if balanced else None

    @property
    def rollouts(self) -> int:
        return -(-self.config.prompts // self.config.prompts_per_rollout)

    @property
    def stopped(self) -> bool:
        """Whether the guard ended the training before its prompts were used up."""
        return self.config.guard.action == "stop" and bool(self.history) and "warnings" in self.history[-1]

    def log_probs(self, batch: Batch, conditioning: Conditioning) -> torch.Tensor:
        """log p (N, M) of what was chosen under the model as it stands, from one forward (guided, for steps).

        Of groups under one noise: minus the mean squared error of the noise prediction, (N, M), without guidance.
        """
        return self.outputs(batch, conditioning)[0]

    def outputs(self, batch: Batch, conditioning: Conditioning) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the method's loss compares, of the model as it stands: `log_probs`, or predictions at finished latents.

        Beside it for steps the mean of x_s in standard deviations of the step, (N, C, h, w).
        """
        if isinstance(batch, Finished):
            return self.family.predict(batch.x_t, batch.t, conditioning), None
        if isinstance(batch, NoisyGroups):
            return -noise_errors(self.family, self.transition, batch, conditioning), None
        scale = self.config.guidance_scale
        prediction = self.family.guided(batch.x_t, batch.t, conditioning, self.null, scale)
        mean, std = self.transition.mean_std(prediction, batch.x_t, batch.t, batch.s)
        compared = mean if self.config.kl_weight > 0 else mean.detach()
        return log_probs(self.transition, batch.x_s, mean, std, self.config), compared / std

    def loss(self, batch: Batch, conditioning: Conditioning) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The method's loss of N rows, (N,), with its statistics; `conditioning` is theirs, row by row.

        Losses of steps are weighted by `timestep_weights`. A further statistic of steps is their drift, the distance
        |mean - mean_ref| / std of policy and reference (Euclidean, over all dimensions): drift^2 / 2 is their KL
        divergence in nats. `kl_weight` times that is added, with the same weight at every timestep: the sum over the
        steps is the divergence of the whole sampler from the base's.
        """
        with torch.no_grad(), self.family.reference():
            reference, base_mean = self.outputs(batch, conditioning)
        policy, mean = self.outputs(batch, conditioning)
        loss, statistics = self.method.loss(policy, reference, batch, self.config)
        if self.mean_gain is not None and isinstance(batch, Steps):
            loss = loss * self.mean_gain / step_gain(self.transition, batch.t, batch.s)
        if mean is not None and base_mean is not None:
            distance = (mean - base_mean).flatten(1)
            statistics["drift"] = distance.detach().norm(dim=1)
            if self.config.kl_weight > 0:
                loss = loss + self.config.kl_weight * distance.square().sum(1) / 2
        return loss, statistics

    def learn(self, batch: Batch, conditioning: Conditioning) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One optimiser step on N pairs; their losses (N,) and statistics, detached. `conditioning` is the rollout's.

        The gradient of the mean is summed over micro-batches, so that activations of a few pairs only are alive.
        """
        self.optimizer.zero_grad(set_to_none=True)
        seen: list[dict[str, torch.Tensor]] = []
        for rows, counts in distributed.batches(len(batch), self.config.micro_batch_size):
            part = batch[rows.to(batch.t.device)] if len(rows) < len(batch) else batch
            loss, statistics = self.loss(part, conditioning[part.prompt])
            self.scale.scaled(loss.sum() / len(batch) * counts).backward()
            if counts:
                seen.append({"loss": loss.detach()} | statistics)
        distributed.sum_gradients(self.weights)
        where = f"tune: rollout {len(self.history) + 1} of {self.rollouts}, update {self.updates + 1}"
        rate, limit = self.config.learning_rate, self.config.max_grad_norm
        if apply_gradients(self.optimizer, rate, limit, where, "tune", self.scale):
            self.updates += 1
            update_ema(self.ema, self.trained, self.config.ema_decay)
        if distributed.count() > 1:
            on_host = [{k: v.cpu() for k, v in s.items()} for s in seen]
            seen = [s for part in distributed.gathered(on_host) for s in part]
        joined = {k: torch.cat([s[k] for s in seen]) for k in seen[0]}
        check_number(joined["loss"].sum(), "loss", where, "tune")
        return joined.pop("loss"), joined

    def update(self, pairs: Batch, conditioning: Conditioning, generator: torch.Generator) -> dict[str, Any]:
        """One pass over the rows of a rollout in minibatches; statistics, also by timestep."""
        losses: list[torch.Tensor] = []
        rows_of_t: list[dict[str, torch.Tensor]] = []
        for _ in range(self.config.epochs_per_rollout):
            order = torch.randperm(len(pairs), generator=generator)
            for rows in order.tensor_split(max(1, round(len(pairs) / self.config.batch_size))):
                batch = pairs[rows.to(pairs.t.device)]
                loss, stats = self.learn(batch, conditioning)
                losses.append(loss)
                shown = {"clipped": "clipped", "correct": "implicit_accuracy", "drift": "drift"}
                rows_of_t.append({"t": batch.t} | {shown[k]: v for k, v in stats.items() if k in shown})
        columns = {k: torch.cat([row[k].float().cpu() for row in rows_of_t]) for k in rows_of_t[0]}
        t = columns.pop("t")
        per_t = {int(at): {k: float(v[t == at].mean()) for k, v in columns.items()} for at in t.unique()}
        means = {k: float(v.mean()) for k, v in columns.items()}
        return {"loss": float(torch.cat(losses).mean()), **means, "by_timestep": per_t}

    def collect(
        self, prompts: list[str], r: int, generator: torch.Generator
    ) -> tuple[Batch, Conditioning, list[StepStatistics], int]:
        """What rollout r learns from, its conditioning, statistics by step, and how many prompts it took."""
        if self.method.stored:
            assert self.stored is not None, f"{self.config.method} learns from stored pairs"
            rows = self.rows_of(len(self.stored), r)
            return *draw(self.family, self.stored, rows, self.config, generator), [], len(rows)
        batch = [prompts[i] for i in self.rows_of(len(prompts), r)]
        if self.old is not None:
            grouped = self.method.batch == "finished groups"
            made = finished(self.family, self.reward, self.old, batch, self.config, generator, grouped)
            return *made, [], len(batch)
        assert self.method.select is not None
        found = rollout(self.family, self.reward, self.method.select, batch, self.config, generator, r)
        return *found, len(batch)

    def run(
        self, prompts: list[str], validate: Callable[[], dict[str, float]], folder: Path, tracker: Tracker | None
    ) -> None:
        """Roll out and update until the prompts are used up; the best adapter by `validate` is left in the model.

        `validate` is called with the EMA in the model and returns "validation", a figure to be raised (BASE_VALUE is
        the base's own), and what else the guard looks at (overoptimisation.py). All processes call it. The
        first one's figures count, and it alone writes checkpoints and has a tracker.

        Raises:
            LpoError: if there are more processes than prompts in a rollout.
            NotFinite: where a score, a loss, a gradient or a weight is NaN or infinite. `best` and the last good
                checkpoint stay.
        """
        if (least := self.config.smallest_rollout) < distributed.count():
            what = f"a rollout of {least} prompts can't be shared by {distributed.count()} processes"
            raise LpoError(what, "params.yaml: tune.prompts, tune.prompts_per_rollout", "raise them, or start fewer")
        done, first = self.resume(folder), distributed.is_first()
        if self.stopped:
            done = self.rollouts
        for r in (
            bar := tqdm(
                range(done, self.rollouts),
                initial=done,
                total=self.rollouts,
                desc="tune",
                mininterval=2,
                disable=not first,
            )
        ):
            generator = random.generator(self.seed, "lpo rollout", r)
            pairs, conditioning, seen, used = self.collect(prompts, r, generator)
            entry: dict[str, Any] = {"rollout": r + 1, "prompts": used, "pairs": len(pairs)}
            with away(idle(self.family, self.reward), self.family.device, "updates"):
                learned = self.update(pairs, conditioning, generator) if len(pairs) else {"by_timestep": {}}
            if self.old is not None:
                self.old = follow(self.old, self.trained, self.config.nft.old_decay)
            entry |= self.scale.figures | learned | {"by_timestep": by_timestep(seen, learned["by_timestep"])}
            if isinstance(self.reward, SeveralRewards):
                entry["rewards"] = dict(self.reward.figures)
            entry["kept"] = len(pairs) / max(sum(s.seen for s in seen), 1) if seen else 1.0
            last = r + 1 == self.rollouts
            if (r + 1) % self.config.validate_every == 0 or last:
                entry |= self.validation(validate)
            self.history.append(entry)
            if found := overoptimisation.warnings(self.history, self.config.guard):
                entry["warnings"] = found
                log.warning("rollout %d: %s", r + 1, "; ".join(found))
                last = last or self.config.guard.action == "stop"
            names = (
                "loss", "pairs", "kept", "drift", "validation", "blind", "reward", "diversity", "loss_scale", "skipped",
            )  # fmt: skip
            shown = {k: entry[k] for k in names if k in entry}
            if tracker is not None:
                steps = tracked_by_timestep(entry["by_timestep"]) | tracked(self.reward)
                tracker.log(r, {f"tune/{k}": float(v) for k, v in shown.items()} | steps)
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()})
            if (r + 1) % self.config.checkpoint_every == 0 or last:
                self.save(folder, r + 1)
            if last:
                break
        self.family.load_lora_state(self.best)

    def rows_of(self, count: int, r: int) -> list[int]:
        """The items of rollout r, out of `count`: pass after pass over all of them, each in an order of its own."""
        size = self.config.prompts_per_rollout
        wanted = range(r * size, min((r + 1) * size, self.config.prompts))
        orders = {
            epoch: torch.randperm(count, generator=random.generator(self.seed, "lpo prompts", epoch))
            for epoch in {i // count for i in wanted}
        }
        return [int(orders[i // count][i % count]) for i in wanted]

    def validation(self, validate: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The figures of the EMA adapter; it becomes the best if it is."""
        current = {k: v.detach().clone() for k, v in self.family.lora_state().items()}
        self.family.load_lora_state(self.ema)
        figures = distributed.from_first(validate())
        if figures["validation"] > self.best_value:
            self.best_value, self.best = figures["validation"], {k: v.clone() for k, v in self.ema.items()}
        self.family.load_lora_state(current)
        return figures

    def save(self, folder: Path, done: int) -> None:
        states = {"lora": self.family.lora_state(), "ema": self.ema, "best": self.best}
        states |= {} if self.old is None else {"old": self.old}
        meta = {"history": self.history, "best_value": self.best_value, "updates": self.updates, **self.scale.state()}
        checkpoint.save_training(folder, done, self.optimizer, states, meta)

    def resume(self, folder: Path) -> int:
        found = checkpoint.load_training(folder, self.optimizer)
        if found is None:
            return 0
        self.family.load_lora_state(found.state("lora"))
        self.ema, self.best = found.state("ema"), found.state("best")
        self.old = None if self.old is None else found.state("old")
        self.history, self.best_value, self.updates = (found.meta[k] for k in ("history", "best_value", "updates"))
        self.scale.load(found.meta)
        return found.step
