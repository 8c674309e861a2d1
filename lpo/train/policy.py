"""Training of the policy: rollouts, step-level preference loss, LoRA (LPO paper, eq. of section 3.3).

    L = -log sigmoid(beta (log r_w - log r_l)),  r = clamp(p_theta(x_s | x_t) / p_ref(x_s | x_t), 1 -+ eps)

Winner and loser share x_t, t and prompt, so one policy and one reference forward give all four log densities
(decisions.md 3); the reference is the same U-Net with its adapter off (4). What is validated, kept and saved is the
exponential moving average of the adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from lpo.config import Lpo
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.preference.losses import lpo_loss
from lpo.rewards.lrm import LatentRewardModel
from lpo.tracking import Tracker
from lpo.train import checkpoint
from lpo.train.loop import optimizer_step
from lpo.train.rollout import StepPairs, StepStatistics, rollout

BASE_VALUE = 0.0  # of `validate`, at the base itself


class PolicyTrainer:
    """The state of one training: adapter, optimiser, EMA, best adapter so far, history (one entry a rollout)."""

    def __init__(self, family: Family, reward: LatentRewardModel, config: Lpo, seed: int) -> None:
        self.family, self.reward, self.config, self.seed = family, reward, config, seed
        self.weights = family.add_lora(config.lora_rank, seed)
        self.optimizer = torch.optim.AdamW(self.weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.ema = {k: v.detach().clone() for k, v in family.lora_state().items()}
        self.best = {k: v.clone() for k, v in self.ema.items()}
        self.best_value, self.updates = 0.0, 0
        self.history: list[dict[str, Any]] = []
        self.null = family.null()
        self.transition = family.transition(config.eta)

    @property
    def rollouts(self) -> int:
        return -(-self.config.prompts // self.config.prompts_per_rollout)

    def log_probs(self, pairs: StepPairs, conditioning: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
        """log p of best and worst under the model as it stands, (N,) each, from one guided forward."""
        scale = self.config.guidance_scale
        prediction = self.family.guided(pairs.x_t, pairs.t, conditioning, self.null, scale)
        mean, std = self.transition.mean_std(prediction, pairs.x_t, pairs.t, pairs.s)
        reduction = self.config.logprob_reduction
        best = self.transition.log_prob(pairs.best, mean, std, reduction)
        return best, self.transition.log_prob(pairs.worst, mean, std, reduction)

    def loss(self, pairs: StepPairs, conditioning: Conditioning) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """LPO's loss of N pairs, (N,), with its statistics; `conditioning` is theirs, row by row."""
        with torch.no_grad(), self.family.reference():
            reference_best, reference_worst = self.log_probs(pairs, conditioning)
        best, worst = self.log_probs(pairs, conditioning)
        return lpo_loss(best, reference_best, worst, reference_worst, self.config.beta, self.config.clip_epsilon)

    def update(self, pairs: StepPairs, conditioning: Conditioning, generator: torch.Generator) -> dict[str, Any]:
        """One pass over the pairs of a rollout in minibatches; statistics, also by timestep."""
        losses, by_t = [], []
        for _ in range(self.config.epochs_per_rollout):
            order = torch.randperm(len(pairs), generator=generator)
            for rows in order.tensor_split(max(1, round(len(pairs) / self.config.batch_size))):
                batch = pairs[rows.to(pairs.t.device)]
                loss, stats = self.loss(batch, conditioning[batch.prompt])
                optimizer_step(self.optimizer, loss.mean(), self.config.learning_rate, self.config.max_grad_norm)
                self.updates += 1
                checkpoint.update_ema(self.ema, self.family.lora_state(), self.config.ema_decay)
                losses.append(loss.detach())
                by_t.append(torch.stack([batch.t.float(), stats["clipped"].float(), stats["correct"].float()]))
        t, clipped, correct = torch.cat(by_t, dim=1).cpu()
        per_t = {
            int(value): {
                "clipped": float(clipped[t == value].mean()),
                "implicit_accuracy": float(correct[t == value].mean()),
            }
            for value in t.unique()
        }
        return {"loss": float(torch.cat(losses).mean()), "clipped": float(clipped.mean()),
                "implicit_accuracy": float(correct.mean()), "by_timestep": per_t}  # fmt: skip

    def run(self, prompts: list[str], validate: Callable[[], float], folder: Path, tracker: Tracker) -> None:
        """Roll out and update until the prompts are used up; the best adapter by `validate` is left in the model.

        `validate` is called with the EMA in the model and returns a figure to be raised (BASE_VALUE is the base's own).
        """
        done = self.resume(folder)
        if done == 0:
            self.best_value = BASE_VALUE
        for r in (
            bar := tqdm(range(done, self.rollouts), initial=done, total=self.rollouts, desc="lpo", mininterval=2)
        ):
            generator = checkpoint.generator(self.seed, "lpo rollout", r)
            batch = self.prompts_of(prompts, r)
            pairs, conditioning, seen = rollout(self.family, self.reward, batch, self.config, generator)
            entry: dict[str, Any] = {"rollout": r + 1, "prompts": len(batch), "pairs": len(pairs)}
            learned = self.update(pairs, conditioning, generator) if len(pairs) else {"by_timestep": {}}
            entry |= learned | {"by_timestep": _by_timestep(seen, learned["by_timestep"])}
            entry["kept"] = len(pairs) / max(sum(s.seen for s in seen), 1)
            last = r + 1 == self.rollouts
            if (r + 1) % self.config.validate_every == 0 or last:
                entry["validation"] = self.validation(validate)
            self.history.append(entry)
            shown = {k: entry[k] for k in ("loss", "pairs", "kept", "validation") if k in entry}
            tracker.log(r, {f"lpo/{k}": float(v) for k, v in shown.items()})
            bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()})
            if (r + 1) % self.config.checkpoint_every == 0 or last:
                self.save(folder, r + 1)
        self.family.load_lora_state(self.best)

    def prompts_of(self, prompts: list[str], r: int) -> list[str]:
        """The prompts of rollout r: pass after pass over all of them, each pass in an order of its own."""
        size = self.config.prompts_per_rollout
        wanted = range(r * size, min((r + 1) * size, self.config.prompts))
        orders = {
            epoch: torch.randperm(len(prompts), generator=checkpoint.generator(self.seed, "lpo prompts", epoch))
            for epoch in {i // len(prompts) for i in wanted}
        }
        return [prompts[int(orders[i // len(prompts)][i % len(prompts)])] for i in wanted]

    def validation(self, validate: Callable[[], float]) -> float:
        """The figure of the EMA adapter; it becomes the best if it is."""
        current = {k: v.detach().clone() for k, v in self.family.lora_state().items()}
        self.family.load_lora_state(self.ema)
        value = validate()
        if value > self.best_value:
            self.best_value, self.best = value, {k: v.clone() for k, v in self.ema.items()}
        self.family.load_lora_state(current)
        return value

    def save(self, folder: Path, done: int) -> None:
        tensors = checkpoint.prefixed("optimizer", checkpoint.optimizer_tensors(self.optimizer))
        for name, state in {"lora": self.family.lora_state(), "ema": self.ema, "best": self.best}.items():
            tensors |= checkpoint.prefixed(name, state)
        meta = {"history": self.history, "best_value": self.best_value, "updates": self.updates}
        checkpoint.save(folder, done, tensors, meta)

    def resume(self, folder: Path) -> int:
        found = checkpoint.load(folder)
        if found is None:
            return 0
        done, tensors, meta = found
        self.family.load_lora_state(checkpoint.unprefixed("lora", tensors))
        checkpoint.load_optimizer(self.optimizer, checkpoint.unprefixed("optimizer", tensors))
        self.ema, self.best = checkpoint.unprefixed("ema", tensors), checkpoint.unprefixed("best", tensors)
        self.history, self.best_value, self.updates = meta["history"], meta["best_value"], meta["updates"]
        return done


def _by_timestep(seen: list[StepStatistics], learned: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    return [asdict(s) | learned.get(s.t, {}) for s in seen]
