"""doctor: is everything here that a run needs? A table on stdout, a line a check."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from lpo.config import load_params
from lpo.errors import LpoError

DISK_GB = 3.0  # what a run of the default preset writes, twice over: data/ and DVC's cache


class Check(NamedTuple):
    name: str
    ok: bool
    found: str  # or what to do about it


def run(params: Path) -> bool:
    """Print the table; True if every check passed."""
    passed = True
    for name, ok, found in _checks(params):
        passed &= ok
        state = typer.style("ok  ", fg=typer.colors.GREEN) if ok else typer.style("FAIL", fg=typer.colors.RED)
        typer.echo(f"{state}  {name:<19} " + found.replace("\n", "\n" + " " * 26))
    return passed


def _checks(params: Path) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()}, 3.11 or newer is needed")
    yield _torch()
    for name in ("diffusers", "transformers", "peft", "great_expectations"):
        yield _package(name)
    yield from _parameters(params)
    free = shutil.disk_usage(".").free / 1e9
    yield Check("disk", free > DISK_GB, f"{free:.1f} GB free, {DISK_GB:g} GB are needed")
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


def _parameters(path: Path) -> Iterator[Check]:
    try:
        base = Path(load_params(path).model.path)
    except LpoError as error:
        yield Check("parameters", False, str(error))
        return
    yield Check("parameters", True, f"{path} is valid")
    if (base / "model_index.json").is_file():
        yield Check("base model", True, str(base))
    else:
        yield Check("base model", False, f"{base} is no diffusers folder; restore it from git, or train it: lpo base")
