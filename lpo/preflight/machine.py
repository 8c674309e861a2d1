"""What the stages need of this machine: the device, memory, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from lpo.config import Params
from lpo.data.download import DATA_FILE, MANIFEST, missing_bytes
from lpo.data.sources.choose import folder_of, repository_of
from lpo.doctor.downloads import downloads
from lpo.doctor.memory import Need
from lpo.doctor.stages import needs
from lpo.errors import LpoError
from lpo.families import device_of
from lpo.files import key_of
from lpo.outputs import check_writable
from lpo.preflight.files import listed

WRITTEN = 3e9  # bytes that a run of the small world writes, twice over: data/ and DVC's cache
SMALL = 100e6  # bytes of a base model with which no machine that runs torch is short of memory
# Pairs of train, validation and test by repository: `num_examples` of these splits in the data set's card,
# https://huggingface.co/datasets/yuvalkirstain/pickapic_v1 (v2), README.md
ROWS = {
    "yuvalkirstain/pickapic_v1": 583_747 + 17_439 + 14_073,
    "yuvalkirstain/pickapic_v2": 959_040 + 20_596 + 20_716,
}
LISTED = {  # bytes of the shards: `download_size` of v1's card; of v2's `num_bytes` of these splits
    "yuvalkirstain/pickapic_v1": 202_289_408_791,
    "yuvalkirstain/pickapic_v2": 322_022_952_127 + 6_339_087_542 + 6_618_429_346,
}

_COMPUTED: dict[str, list[Need]] = {}


def device(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """A device that params.yaml names must be there."""
    yield from ()
    device_of(params.model)


def available(params: Params) -> tuple[int, str]:
    """(bytes of memory of the device that trains, what it is called)."""
    if device_of(params.model).type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return int(properties.total_memory), f"this GPU ({properties.name})"
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            held = min(held, int(text))
    return held, "this machine, which has no GPU," if not torch.cuda.is_available() else "this machine's processor"


def is_small(params: Params) -> bool:
    """Whether all models are small ones in folders, so that memory need not be computed."""
    base = Path(params.model.path)
    named = (params.model.vae, params.model.denoiser, params.reward.base, params.reward.pretrained)
    if params.score.scorers == "published" or params.evaluate.judges != ("emoji",) or any(named) or not base.is_dir():
        return False
    return sum(file.stat().st_size for file in base.rglob("*") if file.is_file()) < SMALL


def stage_needs(params: Params) -> list[Need]:
    """What every stage needs of memory and disk. It takes seconds, so that it is computed once."""
    key = key_of(asdict(params))
    if key not in _COMPUTED:
        _COMPUTED[key] = list(needs(params))
    return _COMPUTED[key]


def memory(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Weights and activations of every stage, computed from configurations (lpo/doctor/stages.py)."""
    if is_small(params):
        return
    try:
        stages = {need.stage: need for need in stage_needs(params)}
    except (LpoError, OSError, ValueError):  # a configuration is not here, which another check says
        return
    held, name = available(params)
    for stage in chain:
        if stage in stages and (need := stages[stage]).total > held:
            what = f"{stage} needs {size(need.total)} of memory; {name} has {size(held)}"
            remedy = "use a larger machine, lower the batch size, or set model.gradient_checkpointing"
            yield LpoError(what, f"stage {stage}", remedy)


def outputs(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """The folders that the stages write to can be written."""
    for folder in (Path("data"), Path("metrics"), Path("plots"), Path(".checkpoints")):
        try:
            check_writable(folder, folder, folder)
        except LpoError as error:
            yield error


def disk(params: Params, chain: Sequence[str]) -> Iterator[LpoError]:
    """Room for the downloads of models and pairs, and for what the stages write."""
    written, fetched = disk_needed(params)
    for folder, needed in ((Path(), written), (Path(constants.HF_HUB_CACHE), fetched)):
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            what = f"{size(needed)} of disk are needed in {folder.resolve()}; {size(free)} are free"
            yield LpoError(what, str(folder.resolve()), "make room, or use another disk")


def disk_needed(params: Params) -> tuple[float, float]:
    """(bytes that a run writes here, bytes of models for the hub's cache); what is not known counts nothing.

    Pairs lie in data/pairs, in DVC's cache, and where downloads are kept there too. Latents are those of two pictures a
    pair: at most, since a picture may be in several pairs, and the filter drops pairs.
    """
    fetched, stages = 0, 0.0
    if not is_small(params):
        try:
            fetched = sum(downloads(params).values())
            stages = sum(need.disk * pictures(params) / 1000 if need.stage == "encode" else need.disk
                         for need in stage_needs(params))  # fmt: skip
        except (LpoError, OSError, ValueError):
            pass
    pairs = 0 if params.dataset.limit else pairs_to_load(params)[0]  # with a limit, the first shards alone are loaded
    return WRITTEN + pairs * (3 if params.dataset.keep_downloads else 2) + stages, fetched


def pictures(params: Params) -> int:
    """Of the data set, at most; 0 where it is not known."""
    rows = ROWS.get(repository_of(params.dataset) or "", 0)
    limit = 3 * params.dataset.limit if params.dataset.limit else rows  # of each split
    return 2 * min(rows or limit, limit)


def pairs_to_load(params: Params) -> tuple[int, str]:
    """(bytes of the data set that are still to be loaded, its repository); 0 where they are not known."""
    config = params.dataset
    name, folder = repository_of(config), folder_of(config)
    if name is None:
        return 0, ""
    if (folder / MANIFEST).exists():
        return missing_bytes(folder, name, config.revision) or 0, name
    if constants.HF_HUB_OFFLINE:
        return LISTED.get(name, 0), name
    try:
        sizes = listed(name, "dataset", config.revision)
    except (HfHubHTTPError, OSError, ValueError):  # models.data_set says so
        return 0, name
    return sum(size for file, size in sizes.items() if DATA_FILE.search(file)), name


def size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
