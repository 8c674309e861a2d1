"""What a family with SD3's transformer needs: one layer's output for a reward, the sampler's steps, its LoRA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from lpo.errors import LpoError


def hidden_mean(
    transformer: SD3Transformer2DModel, latents: torch.Tensor, t: torch.Tensor, prompt_embeds: torch.Tensor,
    pooled: torch.Tensor, layer: int | None,
) -> torch.Tensor:  # fmt: skip
    """Mean over picture tokens of what layer `layer` (from 1; None: the last) puts out, (B, D).

    The paper's reward of SD3-medium reads layer 18 of 24 (LPO, appendix B). Later layers are not run.
    """
    hidden = transformer.pos_embed(latents).contiguous()
    temb = transformer.time_text_embed(t, pooled)
    context = transformer.context_embedder(prompt_embeds)
    checkpointed = torch.is_grad_enabled() and transformer.gradient_checkpointing
    for block in transformer.transformer_blocks[:layer]:
        if checkpointed:
            context, hidden = transformer._gradient_checkpointing_func(block, hidden, context, temb, None)
        else:
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=temb)
    return hidden.mean(dim=1)


def keep(layer: int | None) -> Callable[[SD3Transformer2DModel], None]:
    """A function that takes away in place what `hidden_mean` never runs."""

    def drop(transformer: SD3Transformer2DModel) -> None:
        depth = transformer.config.num_layers
        if layer is None or not 1 <= layer <= depth:
            raise LpoError(
                f"a reward reads one of the {depth} layers of this transformer, not {layer}",
                "params.yaml: reward.layer",
                f"choose 1 to {depth}; the paper takes 18 of 24",
            )
        transformer.transformer_blocks = transformer.transformer_blocks[:layer]
        transformer.norm_out = transformer.proj_out = torch.nn.Identity()

    return drop


def check_scheduler(scheduler: FlowMatchEulerDiscreteScheduler) -> FlowMatchEulerDiscreteScheduler:
    """Refuse settings under which a step's times depend on more than its number."""
    names = ("use_dynamic_shifting", "invert_sigmas", "stochastic_sampling")
    wrong = [name for name in names if scheduler.config[name]]
    if wrong:
        raise LpoError(
            f"unsupported scheduler settings: {', '.join(wrong)}", "scheduler/scheduler_config.json of the model",
            "take another model",
        )  # fmt: skip
    return scheduler


def flow_steps(
    scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(t, s) of the scheduler's Euler steps as timesteps, (n,) float32 each; s = 0 after the last."""
    own = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    own.set_timesteps(num_inference_steps)
    times = own.sigmas * own.config.num_train_timesteps
    return times[:-1], times[1:]
