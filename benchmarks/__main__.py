"""`python -m benchmarks`: everything that is measured, written to one JSON file, a table and a plot.

    python -m benchmarks                     FLOPs and bytes at SD1.5 and SDXL size, wall time at emoji size
    python -m benchmarks --size sd15         and wall time of one iteration in small at SD1.5 size, on the CPU or a GPU
    python -m benchmarks --size sdxl         on a GPU
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks import compare, others, report
from benchmarks.meters import bandwidth, matmul_rate
from benchmarks.models import SIZES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GROWTH = {  # one thing at a time, at SD1.5 shapes; the second value is the usual one
    "num_candidates": (2, 4, 8), "prompts_per_rollout": (2, 4, 8), "side": (32, 64, 96),
    "num_inference_steps": (10, 20, 40),
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument("--size", choices=["emoji", "sd15", "sdxl"], default="emoji", help="of what is timed")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", choices=DTYPES, default=None, help="of what is timed; bf16 on a GPU, else fp32")
    options.add_argument("--repeats", type=int, default=2, help="of which the fastest counts")
    options.add_argument("--side", type=int, default=None, help="of the latents that are timed, if not the size's own")
    options.add_argument("--steps", type=int, default=20, help="of the sampler in what is timed")
    options.add_argument("--no-meta", action="store_true", help="leave out FLOPs and bytes")
    options.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = options.parse_args()
    device = torch.device(given.device)
    dtype = DTYPES[given.dtype or ("bf16" if device.type == "cuda" else "fp32")]
    result: dict[str, Any] = {"machine": machine(device, dtype)}
    if not given.no_meta:
        result |= counted()
    result["timed"] = compare.timed(given.size, device, dtype, given.repeats, given.side, given.steps)
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"{given.size}-{device.type}"
    (given.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    (given.out / f"{name}.md").write_text(report.table(result))
    report.plot(result, given.out / f"{name}.png")
    print(report.table(result))


def counted() -> dict[str, Any]:
    """What is counted on the meta device: not timed, so that two processes share it."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        wait: dict[tuple[Any, ...], Future[Any]] = {("meta", size, setting): pool.submit(compare.on_meta, size, setting)
                for size in reversed(SIZES) for setting in compare.settings(size)}  # fmt: skip  # the longest first
        wait |= {("growth", name, value): pool.submit(compare.flops_at, **{name: value})
                 for name, values in GROWTH.items() for value in values if value != values[1]}  # fmt: skip
        for size in SIZES:
            wait |= {("step", size): pool.submit(others.step_flops, size),
                     ("diffusion_dpo", size): pool.submit(others.diffusion_dpo_flops, size),
                     ("reward_training", size): pool.submit(others.reward_training_flops, size)}  # fmt: skip
        for _ in tqdm(as_completed(wait.values()), "counting", len(wait)):
            pass
    found = {key: future.result() for key, future in wait.items()}
    kinds = ("step", "diffusion_dpo", "reward_training")
    result: dict[str, Any] = {kind: {size: found[kind, size] for size in SIZES} for kind in kinds}
    result["meta"] = {
        size: compare.beside(size, {name: found["meta", size, name] for name in compare.settings(size)})
        for size in SIZES
    }
    usual = result["meta"]["sd15"]["ours"]["ours"]["flops"]
    result["growth"] = {
        name: {value: found.get(("growth", name, value), usual) for value in values} for name, values in GROWTH.items()
    }
    return result


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The device, its measured limits, and versions."""
    import diffusers
    import peft
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name, "threads": torch.get_num_threads(), "load_before": round(os.getloadavg()[0], 2),
        "matmul_flops_per_second": matmul_rate(device, dtype), "bytes_per_second": bandwidth(device),
        "dtype": compare.name_of(dtype), "python": platform.python_version(), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    main()
