"""Whether the files of a model are here, in the hub's cache, or on the hub: one request for each repository.

    list(missing("stabilityai/sdxl-vae", ["config.json", "*.safetensors"]))

A pattern with "|" names alternatives. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from lpo.errors import LpoError
from lpo.families.parts import split_source
from lpo.hub import refusal

TIMEOUT = 20  # seconds that the hub may take to list a repository
OFFLINE = "allow the hub with HF_HUB_OFFLINE=0, or name a folder that holds the model"


def missing(
    source: str, wanted: Sequence[str], where: str, repo_type: str = "model", revision: str | None = None
) -> Iterator[LpoError]:
    """What is wrong with a source: it is nowhere, or lacks files that match the patterns `wanted`.

    Args:
        source: a folder, a file, or a hub id with or without a folder in it.
        where: the parameter that names the source.
    """
    root, inside = split_source(source)
    if Path(root).is_file():
        return
    patterns = ["|".join(f"{inside}/{name}".lstrip("/") for name in pattern.split("|")) for pattern in wanted]
    if Path(root).is_dir() or root.startswith((".", "/")):
        names = _in_folder(Path(root))
        if not names:
            yield LpoError("there is no such model", where, f"{root} is no folder with files: name another one")
            return
    elif not _absent(cached(root, repo_type), patterns):
        return
    elif constants.HF_HUB_OFFLINE:
        yield LpoError(f"{root} is not in the hub's cache, and the hub may not be asked", where, OFFLINE)
        return
    else:
        try:
            names = list(listed(root, repo_type, revision))
        except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
            said = refusal(error, f"the hub does not list {root}: {str(error).splitlines()[0]}", root)
            yield LpoError(said.what, where, said.remedy)
            return
    for pattern in _absent(names, patterns):
        yield LpoError(f"{root} has no {pattern.replace('|', ' or ')}", where, "name a complete model")


def _absent(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    def found(pattern: str) -> bool:
        return any(fnmatchcase(name, one) for name in names for one in pattern.split("|"))

    return [pattern for pattern in patterns if not found(pattern)]


def _in_folder(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def cached(repository: str, repo_type: str = "model") -> list[str]:
    """The files of a repository in the hub's cache, those of its newest snapshot."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type=repo_type)
    snapshots = sorted(folder.glob("snapshots/*"), key=lambda path: path.stat().st_mtime)
    return _in_folder(snapshots[-1]) if snapshots else []


@cache
def listed(repository: str, repo_type: str = "model", revision: str | None = None) -> dict[str, int]:
    """The files that the hub lists of a repository, with their sizes."""
    hub = HfApi()
    ask = hub.dataset_info if repo_type == "dataset" else hub.model_info
    info = ask(repository, revision=revision, files_metadata=True, timeout=TIMEOUT)
    return {item.rfilename: item.size or 0 for item in info.siblings or []}
