"""doctor: is everything here that a run needs? A table on stdout, a line a check."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import TIMINGS

DISK_GB = 3.0  # what a run of the default preset writes, twice over: data/ and DVC's cache
STAGES = ("dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report")
LISTED = {"yuvalkirstain/pickapic_v1": 203_533_062_980}  # bytes of train, validation and test, as its card says


class Check(NamedTuple):
    name: str
    ok: bool
    found: str  # or what to do about it


def run(load: Callable[[], Params], file: str) -> bool:
    """Print the table; True if every check passed. load: reads the parameters; file: what they are called."""
    passed = True
    for name, ok, found in _checks(load, file):
        passed &= ok
        state = typer.style("ok  ", fg=typer.colors.GREEN) if ok else typer.style("FAIL", fg=typer.colors.RED)
        typer.echo(f"{state}  {name:<19} " + found.replace("\n", "\n" + " " * 26))
    return passed


def _checks(load: Callable[[], Params], file: str) -> Iterator[Check]:
    yield Check("python", sys.version_info >= (3, 11), f"{platform.python_version()}, 3.11 or newer is needed")
    yield _torch()
    for name in ("diffusers", "transformers", "peft", "great_expectations"):
        yield _package(name)
    yield from _parameters(load, file)
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


def _parameters(load: Callable[[], Params], file: str) -> Iterator[Check]:
    try:
        params = load()
    except LpoError as error:
        yield Check("parameters", False, str(error))
        return
    yield Check("parameters", True, f"{file} is valid")
    base = Path(params.model.path)
    if (base / "model_index.json").is_file():
        yield Check("base model", True, str(base))
    elif not known(params.model.path):
        yield Check("base model", False, f"{base} is no diffusers folder; restore it from git, or train it: lpo base")
    sizes: list[int] = [round(DISK_GB * 1e9)]
    yield from _data(params, sizes)
    yield from _models(params, sizes)
    free, needed = shutil.disk_usage(".").free, sum(sizes)
    yield Check("disk", free > needed, f"{_size(free)} free, {_size(needed)} are needed")


def known(source: str) -> bool:
    """Whether a hub id is one of presets/models or of the hub's cache: then it needs a download at most."""
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, "model_index.json")
    except ValueError:  # no hub id
        return False
    return isinstance(cached, str) or (Path("presets/models") / source.replace("/", "--")).is_dir()


def _data(params: Params, sizes: list[int]) -> Iterator[Check]:
    """The download of the pairs; its bytes are added to `sizes`, twice where downloads stay beside the pairs."""
    from lpo.data.download import missing_bytes
    from lpo.stages.dataset import DOWNLOADS, REPOSITORIES

    config = params.dataset
    if config.source not in REPOSITORIES or config.path is not None:
        return
    name = REPOSITORIES[config.source]
    size = missing_bytes(DOWNLOADS / config.source, name, config.revision)
    size = LISTED.get(name) if size is None else size
    if size is None:
        yield Check("download", True, f"{name}: the hub says how large it is (HF_HUB_OFFLINE=0), it can't be asked now")
        return
    part = f"; dataset.limit {config.limit} takes the first shards of it" if config.limit is not None else ""
    yield Check("download", True, f"{name}: {_size(size)} of pairs{part}")
    if not part:
        sizes.append(size * (2 if config.keep_downloads else 1))


def _latents(params: Params) -> Iterator[Check]:
    """Whether the model that the reward grows from has the latents of the tuned one, by their configurations."""
    from dataclasses import replace

    import torch

    from lpo.families.latent_space import check_same, load_codec
    from lpo.families.parts import either, local

    if params.reward.base is None:
        return
    codecs = []
    for model in (replace(params.model, path=params.reward.base, vae=None), params.model):
        source, part = either(model.vae, model.path, "vae")
        codecs.append(load_codec(str(local(source)), part, torch.float32, torch.device("meta"), weights=False))
    try:
        check_same(codecs[0].numbers(), codecs[1].numbers(), f"reward.base: {params.reward.base}")
    except LpoError as error:
        yield Check("reward", False, str(error))
    else:
        yield Check("reward", True, f"{params.reward.base} and {params.model.path} say that they share their latents")


def _models(params: Params, sizes: list[int]) -> Iterator[Check]:
    """What is downloaded, and what every stage needs. Informative: a GPU that is absent fails nothing."""
    import torch

    from lpo.doctor.downloads import downloads
    from lpo.doctor.memory import needs

    try:
        yield from _latents(params)
        for source, size in downloads(params).items():
            sizes.append(size)
            yield Check("download", True, f"{source}: about {size / 1e9:.1f} GB in float32")
        total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
        found = {need.stage: need for need in needs(params)}
        for stage in STAGES:
            need = found.get(stage)
            if need is None:
                yield Check(f"stage {stage}", True, "no large model" + _took(stage, params.model.path))
                continue
            sizes.append(need.disk if stage != "encode" else 0)
            fits = total is None or need.total <= total
            disk = f"disk {_size(need.disk)}{' a 1000 pictures' if need.stage == 'encode' else ''}"
            said = f"GPU {_size(need.total)} ({_size(need.weights)} weights + {_size(need.step)} a step), {disk}"
            remedy = "" if fits else f"; this GPU has {_size(total or 0)}: lower the batch size, or set checkpointing"
            yield Check(f"stage {need.stage}", fits, said + _took(stage, params.model.path) + remedy)
    except (LpoError, ValueError) as error:
        yield Check("memory", True, f"not known: {str(error).splitlines()[0]}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _took(stage: str, model: str) -> str:
    """How long the stage took the last time that it ran here with this model."""
    known = json.loads(TIMINGS.read_text()) if TIMINGS.exists() else {}
    took = known.get(stage)
    if not isinstance(took, dict) or took["model"] != model:
        return ", not timed here yet"
    return f", took {took['seconds'] / 60:.1f} min here"
