"""Frozen weights shared out over the processes that torchrun started: each holds 1 / N of every block of a denoiser
and gathers a block while it runs, forwards and backwards (FSDP, arXiv 2304.11277).

Adapters come after sharding and are whole in every process, so that optimiser, average and checkpoints know nothing of
it. Every block is a root of its own, because a reward of a U-Net runs blocks without their model. All processes must
run the same blocks in the same order, so each makes as many forwards as the others.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

BLOCKS = (ResnetBlock2D, Downsample2D, Upsample2D, BasicTransformerBlock)  # of a U-Net


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """What is gathered at a time; the rest (first and last layers, projections between blocks, time) stays whole."""
    if isinstance(denoiser, UNet2DConditionModel):
        return [module for module in denoiser.modules() if isinstance(module, BLOCKS)]
    # of transformers, as diffusers names them; sharding makes subclasses
    names: set[str] = set(cast(Any, denoiser)._no_split_modules)
    return [module for module in denoiser.modules() if names & {cls.__name__ for cls in type(module).__mro__}]


def shard(denoiser: Any, device: torch.device) -> None:
    """Leave this process its part of each block on `device`, in place. The model may come from host memory."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks(denoiser):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    denoiser.to(device)
