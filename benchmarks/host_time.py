"""Host time of switching adapters at SDXL's tree: `python -m benchmarks.host_time`.

A GPU waits for the host while adapters are switched: reference off and on again, and the reward's adapter in and out
where it lies on the policy's own U-Net. The U-Net has no weights (meta device), so only the host's work is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from benchmarks.meters import seconds
from benchmarks.models import SIZES, build
from lpo.families import lora

META = torch.device("meta")


def milliseconds(enter: Callable[[], AbstractContextManager[None]]) -> float:
    """Entering and leaving, the fastest of 20."""

    def switch() -> None:
        with enter():
            pass

    return 1000 * seconds(switch, META, repeats=20)


def main() -> None:
    family = build("sdxl", META, torch.bfloat16)
    with META:
        lora.add(family.denoiser, SIZES["sdxl"].lora_rank, 0, family.lora_targets)
        lora.attach(family.denoiser, 16, family.reward_targets, lora.REWARD)
    modules, layers = sum(1 for _ in family.denoiser.modules()), len(lora.adapted(family.denoiser))
    print(f"SDXL: {modules} modules, {layers} layers with adapters")
    print(f"reference, off and on again: {milliseconds(family.reference):.2f} ms")
    switched = milliseconds(lambda: lora.switched_to(family.denoiser, lora.REWARD))
    print(f"the reward's adapter, in and out: {switched:.2f} ms")
    walk = 1000 * seconds(lambda: lora._layers(family.denoiser), META, repeats=5)
    print(f"finding the layers, once: {walk:.1f} ms")


if __name__ == "__main__":
    main()
