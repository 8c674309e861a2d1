"""One stage in a process of its own, with what it took: `python -m lpo.rehearsal.measure RESULT.json STAGE`.

It runs the command `lpo STAGE` and looks at the gradients before each step of any optimiser. RESULT.json:

    seconds      of the stage, its imports included
    host_peak    bytes: the largest resident set of the process, pages of mapped files included
    host_own     bytes: the most that was not of mapped files, which is what doctor counts, beside the libraries
    gpu_peak     bytes: the most that torch allocated on the GPU at one time; 0 without one
    updates      steps of the optimiser
    trained      layers whose weights it holds
    zero         names of layers whose gradients were zero at every step
    not_finite   names of layers with a gradient that was NaN or infinite
    unused       names of layers that never got a gradient: the loss does not read them
"""

from __future__ import annotations

import gc
import importlib
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lpo.files import write_json

STATUS = Path("/proc/self/status")  # of Linux
EVERY = 0.1  # seconds between two looks at the memory


class Gradients:
    """The largest absolute value of every weight's gradient over all steps."""

    def __init__(self) -> None:
        self.updates = 0
        self.names: dict[int, str] = {}
        self.largest: dict[int, float] = {}

    def look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The hook that torch calls before a step."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if not self.updates:
            self.names = names_of(weights)
        self.updates += 1
        seen = [weight for weight in weights if weight.grad is not None]
        norms = torch._foreach_norm([weight.grad for weight in seen], float("inf"))
        for weight, norm in zip(seen, torch.stack([norm.float().cpu() for norm in norms]).tolist(), strict=True):
            before = self.largest.get(id(weight), 0.0)
            self.largest[id(weight)] = norm if before == before and not norm <= before else before

    def summary(self) -> dict[str, Any]:
        layers: dict[str, list[float | None]] = {}
        for key, name in self.names.items():
            layers.setdefault(name.rpartition(".")[0] or name, []).append(self.largest.get(key))
        found: dict[str, list[str]] = {"zero": [], "not_finite": [], "unused": []}
        for layer, values in layers.items():
            numbers = [value for value in values if value is not None]
            if not numbers:
                found["unused"].append(layer)
            elif not all(abs(value) < float("inf") for value in numbers):
                found["not_finite"].append(layer)
            elif max(numbers) == 0:
                found["zero"].append(layer)
        return {"updates": self.updates, "trained": len(layers), **found}


def names_of(weights: list[torch.Tensor]) -> dict[int, str]:
    """id -> the longest name that a module of this process knows a weight by, or its place in the list."""
    modules = [found for found in gc.get_objects() if issubclass(type(found), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values()}
    named: dict[int, str] = {}
    for module in modules:
        if id(module) not in inner:
            for name, weight in module.named_parameters(remove_duplicate=False):
                named[id(weight)] = max(named.get(id(weight), ""), name, key=len)
    return {id(weight): named.get(id(weight), f"weight {i}") for i, weight in enumerate(weights)}


def host_peak() -> int:
    """Bytes. On Linux ru_maxrss begins with that of the process that started this one, and VmHWM does not."""
    if STATUS.exists():
        return status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def status(name: str) -> int:
    """Bytes that Linux reports of this process."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024


class OwnMemory:
    """The largest anonymous resident set of this process while it runs, looked at ten times a second.

    Pages of mapped files are not in it: the kernel drops them when memory is short.
    """

    def __init__(self) -> None:
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.done.wait(EVERY):
            self.peak = max(self.peak, status("RssAnon"))

    def __enter__(self) -> Self:
        if STATUS.exists():
            self.peak = status("RssAnon")
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()


def measure(result: Path, stage: str) -> int:
    """Run `lpo STAGE` in this process, write RESULT.json whatever happens, and return the exit code."""
    started, gradients = time.monotonic(), Gradients()
    hook = register_optimizer_step_pre_hook(gradients.look)
    words, sys.argv = sys.argv, ["lpo", stage]
    memory = OwnMemory()
    try:
        with memory:
            importlib.import_module("lpo.cli").main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = words
        hook.remove()
        found = {
            "seconds": time.monotonic() - started,
            "host_peak": host_peak(),
            "host_own": memory.peak,
            "gpu_peak": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        }
        write_json(result, found | gradients.summary())
    return 0


if __name__ == "__main__":
    sys.exit(measure(Path(sys.argv[1]), sys.argv[2]))
