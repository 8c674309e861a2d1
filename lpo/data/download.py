"""Files of a data source: a folder as it is, or one that is filled from the hub, file by file, as they are asked for.

    store = open_store("data/sources/pickapic", "yuvalkirstain/pickapic_v1", "main")
    path = store.get("data/train-00000-of-00645-b66ac786bf6fb553.parquet")

A download resumes where a killed one stopped (an HTTP range into `.NAME.partial`), holds one chunk in memory, shows
its progress, and becomes the file only when its size, and its SHA-256 where the hub knows it, are right. What the hub
listed at the first call is kept in manifest.json, so that a name means the same bytes to the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo.errors import LpoError
from lpo.files import inside, write_json

MANIFEST, VERIFIED = "manifest.json", "verified.json"
DATA_FILE = re.compile(
    r"\.(parquet|json|gz|gz\.\d+)$"
)  # ends what a source is listed by; images are found by their names
OFFLINE = "allow the hub with HF_HUB_OFFLINE=0, or put the files there and name the folder: dataset.path in params.yaml"


@dataclass(frozen=True)
class Store:
    """A folder of files, and what the hub says of them: name -> size and sha256 (None where it has none)."""

    folder: Path
    repository: str | None
    commit: str
    files: dict[str, dict[str, Any]]

    def names(self, pattern: str) -> list[str]:
        """Names that match a glob pattern, sorted.

        Raises:
            LpoError: if there are none.
        """
        found = sorted(name for name in self.files if Path(name).match(pattern))
        if not found:
            where = f"{self.repository} ({self.commit})" if self.repository else str(self.folder)
            raise LpoError(f"the source has no file {pattern}", where, "check dataset.source and dataset.path")
        return found

    def get(self, name: str) -> Path:
        """The path of a file, downloaded and checked if need be. Raises LpoError if that fails."""
        path = inside(self.folder, name)
        if self.repository is None or self._verified(name, path):
            return path
        _download(self, name, path)
        return path

    def forget(self, name: str) -> None:
        """Remove a downloaded file; a folder that is somebody's own stays as it is."""
        if self.repository is not None:
            inside(self.folder, name).unlink(missing_ok=True)

    def identity(self) -> dict[str, Any]:
        """What these files are, for a key: as the hub names them, else their names, sizes and times of change."""
        return {"repository": self.repository, "commit": self.commit, "files": self.files}

    def _verified(self, name: str, path: Path) -> bool:
        """Whether the file was checked, and has not changed since."""
        if not path.is_file():
            return False
        known = _read(self.folder / VERIFIED).get(name)
        return known == self._note(name, path) or self._check(name, path) == ""

    def _check(self, name: str, path: Path) -> str:
        """What is wrong with the bytes of a file, "" if nothing is; then that is noted."""
        expected, size = self.files[name], path.stat().st_size
        if size != expected["size"]:
            return f"it has {size} bytes, not {expected['size']}"
        if expected["sha256"]:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected["sha256"]:
                return f"its SHA-256 is {found}, not {expected['sha256']}"
        write_json(self.folder / VERIFIED, _read(self.folder / VERIFIED) | {name: self._note(name, path)})
        return ""

    def _note(self, name: str, path: Path) -> dict[str, Any]:
        """What a checked file is remembered by: another revision, or a change of the file, is another note."""
        return _stamp(path) | {"sha256": self.files[name]["sha256"]}


def open_store(folder: str | Path, repository: str | None, revision: str) -> Store:
    """The files of a folder; with `repository`, a dataset of the hub that the folder is filled from.

    Raises:
        LpoError: if there is no such folder, or the hub does not answer.
    """
    folder = Path(folder)
    if repository is None:
        if not folder.is_dir():
            raise LpoError("there is no such folder", str(folder), "check dataset.path in params.yaml")
        found = sorted(path for path in folder.rglob("*") if DATA_FILE.search(path.name) and path.is_file())
        return Store(folder, None, "", {path.relative_to(folder).as_posix(): _stamp(path) for path in found})
    manifest = _read(folder / MANIFEST)
    if (manifest.get("repository"), manifest.get("revision")) != (repository, revision):
        manifest = {"repository": repository, "revision": revision, **_listed(repository, revision)}
        write_json(folder / MANIFEST, manifest)
    return Store(folder, repository, manifest["commit"], manifest["files"])


def missing_bytes(folder: str | Path, repository: str, revision: str) -> int | None:
    """Bytes of a data set that are still to be loaded into `folder`; None where neither a list is kept nor the hub
    answers. Nothing is written."""
    folder = Path(folder)
    listed = _read(folder / MANIFEST)
    if (listed.get("repository"), listed.get("revision")) != (repository, revision):
        try:
            listed = _listed(repository, revision)
        except LpoError:
            return None
    wanted = {name: file["size"] for name, file in listed["files"].items() if DATA_FILE.search(name)}
    return sum(size for name, size in wanted.items() if not (folder / name).is_file())


def _listed(repository: str, revision: str) -> dict[str, Any]:
    from httpx2 import HTTPError  # the hub's client
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, HTTPError) as error:
        raise LpoError(f"the hub did not list {repository}: {_first(error)}", "dataset.source", OFFLINE) from error
    files = {
        item.rfilename: {"size": item.size, "sha256": item.lfs["sha256"] if item.lfs else None}
        for item in info.siblings or []
    }
    return {"commit": info.sha, "files": files}


def _download(store: Store, name: str, path: Path) -> None:
    """Fetch a file. Raises LpoError if the hub fails; what came so far stays for the next try."""
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    url = hf_hub_url(str(store.repository), name, repo_type="dataset", revision=store.commit)
    size = store.files[name]["size"]
    try:
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
            http_get(
                url, file, resume_size=file.tell(), headers=build_hf_headers(), expected_size=size,
                displayed_filename=path.name,
            )  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, HTTPError) as error:
        raise LpoError(
            f"the download stopped: {_first(error)}", url, f"run it again to resume; or {OFFLINE}"
        ) from error
    partial.replace(path)
    problem = store._check(name, path)
    if problem:
        path.unlink()
        raise LpoError(f"the downloaded file is not what the hub listed: {problem}", url, "run it again")


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]
