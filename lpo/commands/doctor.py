"""doctor: whether everything is here that a run needs, as a table on stdout.

It runs the checks that a stage runs before its work (lpo/preflight), so doctor fails where the run would fail.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from lpo import preflight, timings
from lpo.config import Params
from lpo.errors import LpoError

STATES = {True: ("ok  ", typer.colors.GREEN), False: ("FAIL", typer.colors.RED), None: ("info", None)}


class Check(NamedTuple):
    name: str
    ok: bool | None  # None: a fact, which neither passes nor fails
    found: str  # or what to do about it


def run(load: Callable[[], Params], file: str, first: str = "dataset") -> bool:
    """Print the table; True if no check failed.

    Args:
        load: reads the parameters.
        file: what they are called.
        first: the stage that would run first; it and those after it are checked.
    """
    passed = True
    for name, ok, found in _checks(load, file, first):
        passed &= ok is not False
        state = typer.style(*STATES[ok])
        typer.echo(f"{state}  {name:<19} " + found.replace("\n", "\n" + " " * 26))
    return passed


def _checks(load: Callable[[], Params], file: str, first: str) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()}, 3.11 or newer is needed")
    yield _torch()
    for name in ("diffusers", "transformers", "peft", "great_expectations"):
        yield _package(name)
    yield from _parameters(load, file, first)
    yield _package("dvc")
    clone = Path(".dvc").is_dir() and Path(".git").exists()
    yield Check("repository", clone, "a git clone with .dvc/" if clone else "not a git clone with .dvc/")


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", False, f"{error}; run `make .venv`")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads, {gpu}")


def _package(name: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "not installed; run `make .venv`")


def _parameters(load: Callable[[], Params], file: str, first: str) -> Iterator[Check]:
    try:
        params = load()
    except LpoError as error:
        yield Check("parameters", False, str(error))
        return
    yield Check("parameters", True, f"{file} is valid")
    found = preflight.mistakes(params, first)
    machine_rows = {mistake.where: mistake for mistake in found if mistake.where.startswith("stage ")}
    others = [mistake for mistake in found if mistake.where not in machine_rows]
    for mistake in others:
        yield Check("check", False, str(mistake))
    if not others:
        yield Check("check", True, f"{first} and the stages after it find what they need")
    yield from _models(params, machine_rows)


def _models(params: Params, too_large: dict[str, LpoError]) -> Iterator[Check]:
    """What is downloaded, and what every stage takes."""
    from lpo.doctor.downloads import downloads
    from lpo.preflight.machine import disk_needed, pairs_to_load, size, stage_needs

    part = "; dataset.limit takes the first shards of it" if params.dataset.limit is not None else ""
    if (pairs := pairs_to_load(params))[1]:
        how_large = f"{size(pairs[0])} of pairs{part}" if pairs[0] else "how large it is, only the hub can say"
        yield Check("download", None, f"{pairs[1]}: {how_large}")
    try:
        for source, count in downloads(params).items():
            yield Check("download", None, f"{source}: about {count / 1e9:.1f} GB in float32")
        needed = {need.stage: need for need in stage_needs(params)}
    except (LpoError, OSError, ValueError) as error:
        yield Check("memory", None, f"not known: {str(error).splitlines()[0]}")
        return
    for stage in preflight.STAGES:
        need, mistake = needed.get(stage), too_large.get(f"stage {stage}")
        if need is None:
            yield Check(f"stage {stage}", True, "no large model" + _took(stage, params.model.path))
            continue
        disk = f"disk {size(need.disk)}{' per 1000 pictures' if stage == 'encode' else ''}"
        host = f", host memory {size(need.host)}" if need.host else ""
        said = f"memory {size(need.total)} ({size(need.weights)} weights + {size(need.step)} a step){host}, {disk}"
        remedy = f"\n{mistake}" if mistake else ""
        yield Check(f"stage {stage}", mistake is None, said + _took(stage, params.model.path) + remedy)
    written, fetched = disk_needed(params)
    free = shutil.disk_usage(".").free
    yield Check("disk", None, f"{size(free)} free; a run takes {size(written)}, and models {size(fetched)} to load")


def _took(stage: str, model: str) -> str:
    """How long the stage took the last time that it ran here with this model."""
    took = timings.known().get(stage)
    if not isinstance(took, dict) or took["model"] != model:
        return ", not timed here yet"
    return f", took {took['seconds'] / 60:.1f} min here"
