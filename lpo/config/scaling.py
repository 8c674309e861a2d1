"""A preset for another number of GPUs than the four that its batches are for.

    changes = scaled(preset, gpus=8)        a tree of the values that differ; pure

The published trainings of the policy ran on four GPUs, and the presets hold their global batches. These stay what they
are on any number of GPUs, so that a run can be compared with the paper; each of 64 GPUs would then have a quarter of a
prompt. `scaled` keeps the work of each GPU instead. With k = GPUs / 4:

    batch_size, prompts_per_rollout                          times k
    steps, warmup_steps, validate_every, checkpoint_every    divided by k, so that as many pairs and prompts are seen
    learning_rate                                            times sqrt(k)
    prompts                                                  up to whole rollouts: all GPUs share the last one too

The square root is the rule for Adam of Malladi et al. 2022 (arXiv 2205.10287): the noise of a gradient falls with the
square root of the batch. Their rule also changes the betas of Adam; here those stay. It holds for moderate k. It was
not measured how far it holds for these trainings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lpo.errors import LpoError

GPUS = 4  # that the batches of the presets are for
TIMES = ("batch_size", "prompts_per_rollout")
DIVIDED = ("steps", "warmup_steps", "validate_every", "checkpoint_every")
TRAININGS = ("reward", "spm", "tune")


def scaled(preset: Mapping[str, Any], gpus: int) -> dict[str, dict[str, Any]]:
    """The values of a preset that differ on `gpus` GPUs.

    Raises:
        LpoError: if the preset is one of the embedded world, or a batch is not one of four GPUs.
    """
    if preset.get("dataset", {}).get("source") == "simulated":
        remedy = "lpo preset emoji, without --gpus; or choose the preset of a published model"
        raise LpoError("the embedded world is for one machine, and its batches are for one process", "--gpus", remedy)
    changes = {name: _section(name, preset[name], gpus) for name in TRAININGS if name in preset}
    return {name: section for name, section in changes.items() if section and gpus != GPUS}


def _section(name: str, values: Mapping[str, Any], gpus: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key in (key for key in TIMES if key in values):
        if values[key] % GPUS:
            what = f"{name}.{key} is {values[key]}, which {GPUS} GPUs cannot share evenly"
            raise LpoError(what, "the preset", f"set a multiple of {GPUS}, or leave out --gpus")
        changes[key] = values[key] // GPUS * gpus
    for key in (key for key in DIVIDED if values.get(key)):
        changes[key] = max(1, round(values[key] * GPUS / gpus))
    if (size := changes.get("prompts_per_rollout")) and values["prompts"] % size:
        changes["prompts"] = math.ceil(values["prompts"] / size) * size
    if "learning_rate" in values:
        changes["learning_rate"] = float(f"{values['learning_rate'] * math.sqrt(gpus / GPUS):.3g}")
    return changes
