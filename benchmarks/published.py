"""A plain rendering of the published recipe, from the paper's equations and the quirks in docs/decisions.md.

    four guided forwards a pair: winner and loser, each by the policy and by the reference (decisions.md 3)
    the reference is a deep copy of the U-Net, the reward a third, whole one (4)
    the reward encodes its K B prompts and K B empty ones again at every step (14)
    pairs are taken out at every step; activations are recomputed in backward where the published runs do

It is what this project is measured against. It computes the same numbers, which the benchmark asserts, and shares no
code with the library but the models and the random streams.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from lpo.config import Tune
from lpo.families.sd import SD
from lpo.families.sdxl import SDXL
from lpo.random import normal, of_prompts
from lpo.rewards.lrm import LatentRewardModel


class Published:
    """Policy, reference and reward, and one optimiser. `family` has no adapter yet, and is left as it is."""

    def __init__(self, family: SD | SDXL, reward: LatentRewardModel, config: Tune, seed: int, recompute: bool) -> None:
        self.config, self.reward, self.prompt_encoder = config, reward, family
        policy = replace(family, denoiser=copy.deepcopy(family.denoiser))
        self.reference = copy.deepcopy(family.denoiser)
        self.weights = policy.add_lora(config.lora_rank, seed)
        self.unet = policy.denoiser
        self.lrm = copy.deepcopy(family.denoiser)
        self.lrm.load_state_dict(reward.backbone.denoiser.state_dict(), strict=False)  # up blocks stay, unused
        if recompute:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
        )
        self.pixels, self.predicts_v = family.pixels, family.scheduler.config.prediction_type == "v_prediction"
        self.alphas = family.scheduler.alphas_cumprod.to(family.device)
        self.final = family.scheduler.final_alpha_cumprod.to(family.device)

    def arguments(self, text: Any) -> dict[str, Any]:
        """A U-Net's arguments for what belongs to prompts; SDXL adds the pooled text and the picture's sizes."""
        given: dict[str, Any] = {"encoder_hidden_states": text["prompt_embeds"]}
        if "text_embeds" in text:
            side, pooled = self.pixels, text["text_embeds"]
            sizes = torch.tensor([side, side, 0, 0, side, side], dtype=pooled.dtype).to(pooled.device)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
        return given

    def predict(self, unet: Any, x: torch.Tensor, t: torch.Tensor, text: Any, null: Any) -> torch.Tensor:
        twice = {k: torch.cat([null[k].expand(len(x), *v.shape[1:]), v]) for k, v in text.items()}
        uncond, cond = unet(torch.cat([x, x]), torch.cat([t, t]), **self.arguments(twice)).sample.chunk(2)
        return uncond + self.config.guidance_scale * (cond - uncond)

    def noise(self, prediction: torch.Tensor, x: torch.Tensor, a_t: torch.Tensor) -> torch.Tensor:
        """What a U-Net predicts, as noise; the embedded world's predicts v = sqrt(a_t) noise - sqrt(1 - a_t) x_0."""
        return a_t**0.5 * prediction + (1 - a_t) ** 0.5 * x if self.predicts_v else prediction

    def mean_std(self, prediction: torch.Tensor, x: torch.Tensor, t: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
        a_t, a_s = self.alphas[t], self.alphas[s] if s >= 0 else self.final
        std = ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
        noise = self.noise(prediction, x, a_t)
        x0 = (x - (1 - a_t) ** 0.5 * noise) / a_t**0.5
        return a_s**0.5 * x0 + (1 - a_s - std**2) ** 0.5 * noise, std

    def features(self, x: torch.Tensor, t: torch.Tensor, text: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        unet, given = self.lrm, self.arguments(text)
        emb = unet.time_embedding(unet.time_proj(t).to(x.dtype))
        added = given.get("added_cond_kwargs")
        if added:
            times = unet.add_time_proj(added["time_ids"].flatten()).reshape(len(x), -1)
            emb = emb + unet.add_embedding(torch.cat([added["text_embeds"], times], dim=-1).to(x.dtype))
        x = unet.conv_in(x)
        outputs = [x]
        for block in unet.down_blocks:
            words = {"encoder_hidden_states": given["encoder_hidden_states"]} if hasattr(block, "attentions") else {}
            x, more = block(hidden_states=x, temb=emb, **words)
            outputs += more
        x = unet.mid_block(x, emb, encoder_hidden_states=given["encoder_hidden_states"])
        every = unet.config.layers_per_block + 1
        last = [outputs[every * (i + 1) - 1] for i in range(len(unet.down_blocks))]
        return [y.mean(dim=(2, 3)) for y in last], x.mean(dim=(2, 3))

    def score(self, x: torch.Tensor, t: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        text, null = self.reward.encode_prompts(prompts), self.reward.encode_prompts([""] * len(prompts))
        down, mid = self.features(x, t, text.tensors)
        _, uncond = self.features(x, t, null.tensors)
        mid = uncond + self.reward.guidance_scale * (mid - uncond)
        visual = self.reward.visual_projection(torch.cat([*down, mid], dim=1).float())
        words = self.reward.text_projection(text.pooled.float())
        return self.reward.logit_scale.exp() * F.cosine_similarity(visual, words)

    @torch.no_grad()
    def rollout(self, prompts: list[str], generator: torch.Generator, kept: int | None = None) -> list[dict[str, Any]]:
        """The kept pairs of every step. On the meta device, where there are no scores, the first `kept` of them."""
        family, config = self.prompt_encoder, self.config
        k, count, steps = config.num_candidates, len(prompts), config.num_inference_steps
        text, null = family.encode_prompts(prompts).tensors, family.null().tensors
        stride, offset = 1000 // steps, family.scheduler.config.steps_offset

        # Every prompt has its own stream, as in `lpo.train.policy.rollout`, so that both see the same noise.
        streams = of_prompts(generator, count, torch.arange(count))

        def draw(*shape: int) -> torch.Tensor:
            return normal(streams, *shape, *family.latent_shape).to(family.dtype).to(family.device)

        x, pairs = draw(), []
        for step in reversed(range(steps)):
            t, s = step * stride + offset, max(step * stride + offset - stride, -1)
            times = torch.full((count,), t, device=family.device)
            mean, std = self.mean_std(self.predict(self.unet, x, times, text, null).float(), x.float(), t, s)
            candidates = mean[:, None] + std * draw(k)
            flat = candidates.flatten(0, 1).to(family.dtype)
            scores = self.score(flat, times.repeat_interleave(k), [p for p in prompts for _ in range(k)]).view(count, k)
            following = torch.cat([torch.randint(k, (1,), generator=each) for each in streams]).to(family.device)
            gap = scores.amax(1) - scores.amin(1)
            chance = torch.tanh(gap / 2)
            keep = (
                torch.arange(kept, device=family.device) if kept is not None
                else torch.nonzero(chance > torch.quantile(chance, config.threshold.low)).flatten()
            )  # fmt: skip
            every = torch.arange(count, device=family.device)
            best, worst = candidates[every, scores.argmax(1)], candidates[every, scores.argmin(1)]
            pairs.append({"x": x[keep], "w": best[keep], "l": worst[keep], "t": t, "s": s,
                          "text": {k: v[keep] for k, v in text.items()}})  # fmt: skip
            x = candidates[every, following].to(family.dtype)
        self.null = null
        return pairs

    def log_prob(self, unet: Any, batch: dict[str, Any], x_s: torch.Tensor) -> torch.Tensor:
        prediction = self.predict(unet, batch["x"], batch["t"], batch["text"], self.null).float()
        a_t, a_s, column = self.alphas[batch["t"]], batch["a_s"], (-1, 1, 1, 1)
        std = (((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5).view(column)
        a_t, a_s, x = a_t.view(column), a_s.view(column), batch["x"].float()
        noise = self.noise(prediction, x, a_t)
        mean = a_s**0.5 * (x - (1 - a_t) ** 0.5 * noise) / a_t**0.5 + (1 - a_s - std**2) ** 0.5 * noise
        return torch.distributions.Normal(mean, std, validate_args=False).log_prob(x_s.float()).mean(dim=(1, 2, 3))

    def update(self, pairs: list[dict[str, Any]], generator: torch.Generator) -> torch.Tensor:
        """One pass over the pairs in minibatches, four guided forwards each; the losses."""
        rows = _rows(pairs, self.alphas, self.final)
        config, losses = self.config, []
        order = torch.randperm(len(rows["x"]), generator=generator)
        for part in order.tensor_split(max(1, round(len(order) / config.batch_size))):
            part = part.to(rows["x"].device)
            batch = {k: v[part] for k, v in rows.items() if k != "text"}
            batch["text"] = {k: v[part] for k, v in rows["text"].items()}
            change = []
            for x_s in (batch["w"], batch["l"]):
                with torch.no_grad():
                    reference = self.log_prob(self.reference, batch, x_s)
                ratio = (self.log_prob(self.unet, batch, x_s) - reference).exp()
                change.append(ratio.clamp(1 - config.clip_epsilon, 1 + config.clip_epsilon).log())
            loss = -F.logsigmoid(config.beta * (change[0] - change[1]))
            self.optimizer.zero_grad()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(self.weights, config.max_grad_norm or math.inf)
            self.optimizer.step()
            losses.append(loss.detach())
        return torch.cat(losses)


def _rows(pairs: list[dict[str, Any]], alphas: torch.Tensor, final: torch.Tensor) -> dict[str, Any]:
    """The pairs of all steps, row by row."""
    rows: dict[str, Any] = {k: torch.cat([p[k] for p in pairs]) for k in ("x", "w", "l")}
    sizes = [len(p["x"]) for p in pairs]
    rows["t"] = torch.cat([torch.full((n,), p["t"]) for n, p in zip(sizes, pairs, strict=True)]).to(alphas.device)
    ends = [alphas[p["s"]] if p["s"] >= 0 else final for p in pairs]
    rows["a_s"] = torch.cat([a.expand(n) for n, a in zip(sizes, ends, strict=True)])
    rows["text"] = {k: torch.cat([p["text"][k] for p in pairs]) for k in pairs[0]["text"]}
    return rows
