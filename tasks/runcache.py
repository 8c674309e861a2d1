"""One stage and DVC's remote: `python runcache.py ACTION STAGE ...`, in a workspace.

find: does this machine have a result of exactly these inputs and parameters? fetch: ask the remote as well, and
download the result. Both put the files in place and print, as their last line, "current" (the workspace had the result
already), "cached" (`dvc repro` will now take it from the cache) or "absent". push: send the stage's result to the
remote.

push-parts, pull-parts: unfinished work of a stage that several machines share. It lies in the remote under
parts/STAGE/KEY, where KEY is a hash of the stage's command, inputs and parameters as DVC records them. Files have the
names that they have under .checkpoints/STAGE, and a number at the end of a name says to which share a file belongs
(lpo/resume.py). push removes them, since the stage then has its result.

The commands `dvc pull --run-cache` and `dvc push --run-cache` do not suffice. They leave out the metrics and plots that
DVC leaves to git (`cache: false`), and without those a stage is not found in another clone. They also copy every entry
of the run cache each time; here only entries that the other side lacks are copied.

This is a process of its own, so that the flows never import dvc.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from dvc.exceptions import CheckoutError, DownloadError, UploadError
from dvc.fs import generic, localfs
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils import dict_sha256

CHECKPOINTS = Path(".checkpoints")


def find(repo: Repo, stage: Any, pull: bool = False) -> None:
    with repo.lock:
        if not stage.changed():
            print("current")
            return
        try:
            repo.stage_cache.restore(stage, pull=pull)
        except RunCacheNotFoundError:
            print("absent")
        else:
            print("cached")


def fetch(repo: Repo, stage: Any) -> None:
    with repo.lock:
        recorded = not (stage.changed_stage() or stage.changed_deps())
    if recorded:
        try:  # dvc.lock has these inputs, so what it names may be in the remote
            repo.pull([stage.addressing])
        except (CheckoutError, DownloadError) as error:
            print(f"the remote does not have what dvc.lock names: {error}")
    _copy_entries(_remote(repo), repo.cache.legacy)
    find(repo, stage, pull=True)


def push(repo: Repo, stage: Any) -> None:
    """Files first: whatever the remote's run cache names must be there."""
    repo.push([stage.addressing])
    left_to_git = [out.hash_info for out in stage.outs if not out.use_cache and out.hash_info]
    if left_to_git and (failed := repo.cloud.push(left_to_git).failed):
        raise UploadError(len(failed))
    _copy_entries(repo.cache.legacy, _remote(repo))
    if (store := _remote(repo)).fs.exists(store.fs.join(store.path, "parts", stage.name)):
        store, root = _parts(repo, stage)
        if store.fs.exists(root):
            store.fs.remove(list(store.fs.find(root)))


def _copy_entries(source: Any, target: Any) -> None:
    """Copy the run cache's entries, small YAML files, that the target lacks."""
    known = set(_entries(target))
    for entry in _entries(source):
        if entry not in known:
            to = target.fs.join(target.path, "runs", *entry)
            target.fs.makedirs(target.fs.parent(to), exist_ok=True)
            generic.copy(source.fs, source.fs.join(source.path, "runs", *entry), target.fs, to)


def _entries(store: Any) -> Iterator[tuple[str, ...]]:
    """(two letters, hash of the inputs, hash of the result) of every entry."""
    root = store.fs.join(store.path, "runs")
    for path in store.fs.find(root) if store.fs.exists(root) else ():
        parts = store.fs.parts(store.fs.relpath(path, root))
        if len(parts[-1]) == 64:  # else it is being written
            yield tuple(parts)


def push_parts(repo: Repo, stage: Any, folder: str, share: str) -> None:
    """Send the files of a share below `folder` that the remote lacks."""
    store, root = _parts(repo, stage)
    here = CHECKPOINTS / stage.name
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    names = set(_of_share((path.relative_to(here).as_posix() for path in files), share))
    new = sorted(names - set(_names(store, root)))
    if new:
        generic.copy(localfs, [str(here / name) for name in new], store.fs, [_join(store, root, name) for name in new])
    print(f"{len(new)} files sent")


def pull_parts(repo: Repo, stage: Any, share: str = "1/1") -> None:
    """Fetch the files of a share, by default all, that are not here."""
    store, root = _parts(repo, stage)
    here = CHECKPOINTS / stage.name
    new = [name for name in _of_share(_names(store, root), share) if not (here / name).exists()]
    for name in new:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
    if new:
        generic.copy(store.fs, [_join(store, root, name) for name in new], localfs, [str(here / name) for name in new])
    print(f"{len(new)} files fetched")


def _parts(repo: Repo, stage: Any) -> tuple[Any, str]:
    """The remote, and the folder there of this stage's unfinished work."""
    stage.save_deps()
    recorded = to_single_stage_lockfile(stage)
    key = dict_sha256({name: recorded.get(name) for name in ("cmd", "deps", "params")}, exclude=["size", "nfiles"])
    store = _remote(repo)
    return store, store.fs.join(store.path, "parts", stage.name, key)


def _names(store: Any, root: str) -> Iterator[str]:
    """The names of the files under a folder of the remote. One that would leave its folder here is left out."""
    for path in store.fs.find(root) if store.fs.exists(root) else ():
        name = PurePosixPath(*store.fs.parts(store.fs.relpath(path, root)))
        if not name.is_absolute() and ".." not in name.parts:
            yield str(name)


def _of_share(names: Iterable[str], share: str) -> Iterator[str]:
    """The names of whole files whose part is of the share "K/N": every N-th, from the K-th on."""
    number, count = map(int, share.split("/"))
    for name in names:
        part = re.search(r"(\d+)$", PurePosixPath(name).stem)
        if part and not PurePosixPath(name).name.startswith(".") and int(part[1]) % count == number - 1:
            yield name


def _join(store: Any, root: str, name: str) -> str:
    return str(store.fs.join(root, *name.split("/")))


def _remote(repo: Repo) -> Any:
    return repo.cloud.get_remote_odb(None, "run-cache", hash_name="md5-dos2unix")


def main() -> None:
    action, name, *rest = sys.argv[1:]
    actions: dict[str, Callable[..., None]] = {
        "find": find, "fetch": fetch, "push": push,
        "push-parts": push_parts, "pull-parts": pull_parts,
    }  # fmt: skip
    with Repo() as repo:
        (stage,) = repo.stage.collect(name)
        actions[action](repo, stage, *rest)


if __name__ == "__main__":
    main()
