"""The GPUs that a process may use, and what they did: GPU-hours, and energy where the driver tells it.

    with measured(visible()) as meter:
        work()
    meter.use       Use(gpus=4, seconds=120.5, joules=130e3), None without a GPU

NVIDIA's driver counts the energy of each GPU since it was loaded (NVML, nvmlDeviceGetTotalEnergyConsumption, in mJ; of
Volta and later). It counts all that the GPU does, for whomever. A MIG slice has no counter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

VARIABLE = "CUDA_VISIBLE_DEVICES"
QUERY = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
STAGES = frozenset({"score", "encode", "reward", "spm", "tune", "evaluate"})  # `meta: {gpu: true}` in dvc.yaml
HOUR = 3600.0  # seconds
KWH = 3.6e6  # joules


@dataclass(frozen=True)
class Use:
    """gpus: how many were held, for `seconds`. joules: of all of them together; None where the driver does not say."""

    gpus: int
    seconds: float
    joules: float | None = None

    @property
    def hours(self) -> float:
        """GPU-hours: GPUs times hours, whether they computed or not."""
        return self.gpus * self.seconds / HOUR


def read(found: Any) -> Use | None:
    """A `Use` out of JSON; None where there is none, or nothing that can be read."""
    try:
        energy = found["joules"]
        return Use(int(found["gpus"]), float(found["seconds"]), None if energy is None else float(energy))
    except (KeyError, TypeError, ValueError):
        return None


@dataclass
class Meter:
    use: Use | None = None


@contextmanager
def measured(names: Sequence[str]) -> Iterator[Meter]:
    """Inside, the time and the energy of these GPUs are measured; afterwards the meter has them."""
    meter, started, before = Meter(), time.monotonic(), joules(names)
    yield meter
    if names:
        after = joules(names)
        used = after - before if before is not None and after is not None and after >= before else None
        meter.use = Use(len(names), round(time.monotonic() - started, 1), used)


def joules(names: Sequence[str]) -> float | None:
    """What these GPUs have taken since their driver was loaded; None if it does not say so of each."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        counts = []
        for name in names:
            by_name = pynvml.nvmlDeviceGetHandleByUUID
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else by_name(name)
            counts.append(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000)
    except pynvml.NVMLError:
        return None
    return sum(counts) if counts else None


def total(uses: Iterable[Use | None]) -> tuple[float, float | None]:
    """(GPU-hours, kWh) of all of them; the energy is None unless each of them tells it."""
    found = [use for use in uses if use is not None]
    known = [use.joules for use in found if use.joules is not None]
    return sum(use.hours for use in found), sum(known) / KWH if found and len(known) == len(found) else None


def cost(hours: float, kwh: float | None, price: float | None) -> str:
    """GPU-hours, energy and cost in words, such as "3.21 GPU-hours, 1.90 kWh, cost 6.42"."""
    words = [f"{hours:.2f} GPU-hours"]
    words += [f"{kwh:.2f} kWh"] if kwh is not None else []
    words += [f"cost {hours * price:.2f}"] if price is not None else []
    return ", ".join(words)


def of_stage(stage: str, device: str) -> list[str]:
    """The GPUs that a command `lpo STAGE` takes, which has imported torch; device: `model.device`.

    A torch without CUDA takes none, whatever the machine has.
    """
    torch = sys.modules.get("torch")
    if stage not in STAGES or device == "cpu" or torch is None or not torch.cuda.is_available():
        return []
    return visible()


def visible() -> list[str]:
    """The GPUs that this process may use, by names that mean the same to every process of the machine.

    These are NVIDIA's UUIDs, such as GPU-8f6c..., where the driver tells them. Without an NVIDIA driver there are none.
    """
    listed = _listed()
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return list(listed.values())
    names = []
    for name in (part.strip() for part in wanted.split(",")):
        if name in ("", "-1"):  # CUDA takes no notice of what comes after
            break
        names.append(listed.get(name, name))
    return names


def _listed() -> dict[str, str]:
    """UUIDs of all GPUs by their numbers, from the driver's own program."""
    if not shutil.which(QUERY[0]):
        return {}
    done = subprocess.run(QUERY, capture_output=True, text=True, check=False)
    return dict(re.findall(r"^(\d+), (\S+)$", done.stdout, re.MULTILINE)) if done.returncode == 0 else {}
