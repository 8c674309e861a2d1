"""rehearse: every stage of a preset on this machine, with random models of full size, before a run that costs money."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import typer
import yaml

from lpo.config import Params
from lpo.doctor.stages import needs
from lpo.errors import LpoError
from lpo.families import device_of
from lpo.files import write_json, write_text
from lpo.paths import SPM
from lpo.preflight.machine import size
from lpo.rehearsal import settings
from lpo.rehearsal.pairs import write_pairs
from lpo.rehearsal.sources import Models, with_models

LIBRARIES = 1.5e9  # bytes of host memory that Python, torch and the other libraries take
HEAP = 1.25  # a CPU's allocator keeps some of what was freed: 12.1 GB were resident where 9.7 were alive (sd15, tune)
WORKING = 1e9  # bytes of disk for pairs, latents, pictures and the report
LAYERS = 1  # of each half of CLIP-FlanT5 where the whole does not fit
TRAININGS = ("reward", "spm", "tune")
TAIL = 30  # lines of a failed stage's output


class Plan(NamedTuple):
    params: Params
    models: Models
    size: settings.Size
    peaks: dict[str, int]  # bytes of a stage by doctor's count
    memory: float  # of the device, for the largest stage
    host: float  # of the host
    disk: float
    layers: int | None


def run(params: Params, name: str, steps: int, resolution: int | None, keep: Path | None) -> bool:
    """Say what the rehearsal needs, run it, and print what each stage took; True if nothing is wrong.

    Raises:
        LpoError: with all reasons why it does not fit on this machine, before any work.
    """
    settings.check(params)
    with scratch(keep) as folder:
        plan = fitting(params, folder, steps, resolution)
        model = plan.params.model
        typer.echo(f"{name}: {model.family} on {model.device} in {model.dtype}, {steps} steps, in {folder}")
        typer.echo(f"it needs {size(plan.memory)} of {_place(model.device)}, {size(plan.disk)} of disk")
        if plan.layers is not None:
            cut = f"{plan.layers} layer of its encoder and {plan.layers} of its decoder"
            typer.echo(f"CLIP-FlanT5 does not fit whole, so it is cut to {cut}")
        if left := set(params.evaluate.judges) - set(plan.params.evaluate.judges):
            typer.echo(f"judges that are left out: {', '.join(sorted(left))}")
        started = time.monotonic()
        plan.models.write(torch.Generator().manual_seed(params.seed))
        prepare(plan, folder)
        typer.echo(f"random weights written: {time.monotonic() - started:.0f} s\n")
        return rehearsed(plan, folder)


@contextmanager
def scratch(keep: Path | None) -> Iterator[Path]:
    """The folder of the rehearsal: `keep`, which stays, or one in the working directory that is deleted."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix=".rehearsal-", dir=".")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fitting(params: Params, folder: Path, steps: int, resolution: int | None) -> Plan:
    """The plan with the whole CLIP-FlanT5 if that fits, else with a short one.

    Raises:
        LpoError: if neither fits.
    """
    for layers in (None, LAYERS):
        shutil.rmtree(folder / "models", ignore_errors=True)
        plan = planned(params, folder, steps, resolution, layers)
        wrong = list(shortages(plan, folder))
        if not wrong:
            return plan
    listed = "\n".join("  " + str(mistake).replace("\n", "\n  ") for mistake in wrong)
    shutil.rmtree(folder / "models", ignore_errors=True)
    what = f"this machine is too small for the rehearsal; nothing was run:\n{listed}"
    raise LpoError(what, "lpo rehearse", "use a larger machine, or a smaller --resolution")


def planned(params: Params, folder: Path, steps: int, resolution: int | None, layers: int | None) -> Plan:
    """What the rehearsal runs and needs. Configurations are written to `folder`, and no weights."""
    cuda = device_of(params.model).type == "cuda"
    models = Models(folder / "models")
    much = settings.size_of(params, steps, cuda)
    short = settings.shortened(with_models(params, models, layers), much, cuda, resolution)
    counted = list(needs(short))
    largest = max(need.total for need in counted)
    files = [file.bytes for file in models.missing.values()]
    host = LIBRARIES + (2 * max(files, default=0) if cuda else HEAP * largest)
    disk = models.bytes + WORKING + sum(need.disk for need in counted if need.stage in TRAININGS)
    peaks = {need.stage: need.total for need in counted}
    return Plan(short, models, much, peaks, largest if cuda else host, host, disk, layers)


def shortages(plan: Plan, folder: Path) -> Iterator[LpoError]:
    """Everything that the plan needs and this machine lacks now."""
    if plan.params.model.device == "cuda":
        free = torch.cuda.mem_get_info()[0]
        if plan.memory > free:
            what = f"{size(plan.memory)} of GPU memory are needed, {size(free)} are free"
            yield LpoError(what, torch.cuda.get_device_name(), "stop other programs on it, or use a larger GPU")
    free = psutil.virtual_memory().available
    if plan.host > free:
        what = f"{size(plan.host)} of memory are needed, {size(free)} are free"
        yield LpoError(what, "memory", "stop other programs")
    free = shutil.disk_usage(folder).free
    if plan.disk > free:
        yield LpoError(f"{size(plan.disk)} of disk are needed, {size(free)} are free", str(folder), "make room there")


def prepare(plan: Plan, folder: Path) -> None:
    """params.yaml and the pairs."""
    from lpo.families import load_family

    pixels = load_family(plan.params.model, device=torch.device("meta")).pixels
    write_pairs(folder / "pairs", plan.size.pairs, plan.size.prompts, pixels, plan.params.seed)
    tree = json.loads(json.dumps(asdict(plan.params)))  # tuples become lists
    write_text(folder / "params.yaml", yaml.safe_dump(tree, sort_keys=False))


def rehearsed(plan: Plan, folder: Path) -> bool:
    """Run the stages one after the other until one fails, and print a line for each."""
    training = "spm" if Path(plan.params.tune.reward) == SPM else "reward"
    results: dict[str, dict[str, Any]] = {}
    wrong: list[str] = []
    memory = "".join(f"{name:>12}" for name in ("host peak", "not mapped", "GPU peak", "doctor"))
    typer.echo(f"{'stage':<10}{'seconds':>9}{memory}  gradients")
    for stage in ("dataset", "score", "filter", "encode", training, "tune", "evaluate", "report"):
        code, found = measured(stage, folder)
        results[stage] = found
        typer.echo(_line(stage, found, plan.peaks.get(stage)))
        if code != 0:
            output = (folder / f"logs/{stage}.log").read_text(errors="replace").splitlines()
            typer.echo("\n".join(["", f"the end of what {stage} printed:", *output[-TAIL:]]), err=True)
            wrong.append(f"{stage} ended with {code}")
            break
        wrong += [f"{stage}: {text}" for text in mistakes(stage, found)]
    write_json(folder / "rehearsal.json", {"stages": results, "doctor": plan.peaks, "wrong": wrong})
    typer.echo("\n" + "\n".join(wrong or ["every stage ended well, and every gradient is finite"]))
    return not wrong


def measured(stage: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """(exit code, what lpo/rehearsal/measure.py found); what the stage prints goes to logs/STAGE.log."""
    result, log = folder / f"measured/{stage}.json", folder / f"logs/{stage}.log"
    log.parent.mkdir(exist_ok=True)
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # one process, whose peak is that of each GPU
    alone = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": first, "LPO_PROCESSES": "1"}
    command = [sys.executable, "-m", "lpo.rehearsal.measure", str(result), stage]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=folder, env=os.environ | alone, stdout=output, stderr=subprocess.STDOUT)
    return done.returncode, json.loads(result.read_text()) if result.exists() else {}


def mistakes(stage: str, found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the gradients of a training."""
    if stage in TRAININGS and not found["updates"]:
        yield "no step of the optimizer was made"
    for key, what in (("not_finite", "are NaN or infinite"), ("zero", "are zero at every step")):
        if layers := found[key]:
            yield f"gradients of {len(layers)} of {found['trained']} layers {what}: {', '.join(layers[:5])}"


def _line(stage: str, found: dict[str, Any], counted: int | None) -> str:
    if not found:
        return f"{stage:<10}   it was killed; is its memory enough?"
    gpu = size(found["gpu_peak"]) if found["gpu_peak"] else "-"
    doctor = size(counted) if counted is not None else "-"
    own = size(found["host_own"]) if found["host_own"] else "-"  # only Linux says
    line = f"{stage:<10}{found['seconds']:>9.1f}{size(found['host_peak']):>12}{own:>12}{gpu:>12}{doctor:>12}  "
    if not found["updates"]:
        return line + "-"
    unused = f", {len(found['unused'])} unused" if found["unused"] else ""
    return line + f"{found['trained']} layers, {found['updates']} updates{unused}"


def _place(device: str) -> str:
    return "GPU memory" if device == "cuda" else "memory"
