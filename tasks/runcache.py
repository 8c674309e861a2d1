"""One stage and DVC's run cache: `python runcache.py find|fetch|push STAGE`, in a workspace.

find: does this machine have a result of exactly these inputs and parameters? fetch: ask the remote as well, and
download the result. Both put the files in place and print, as their last line, "current" (the workspace had the result
already), "cached" (`dvc repro` will now take it from the cache) or "absent". push: send the stage's result to the
remote.

The commands `dvc pull --run-cache` and `dvc push --run-cache` do not suffice. They leave out the metrics and plots that
DVC leaves to git (`cache: false`), and without those a stage is not found in another clone. They also copy every entry
of the run cache each time; here only entries that the other side lacks are copied.

This is a process of its own, so that the flows never import dvc.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from dvc.exceptions import CheckoutError, DownloadError, UploadError
from dvc.fs import generic
from dvc.repo import Repo
from dvc.stage.cache import RunCacheNotFoundError


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


def _remote(repo: Repo) -> Any:
    return repo.cloud.get_remote_odb(None, "run-cache", hash_name="md5-dos2unix")


def main() -> None:
    action, name = {"find": find, "fetch": fetch, "push": push}[sys.argv[1]], sys.argv[2]
    with Repo() as repo:
        (stage,) = repo.stage.collect(name)
        action(repo, stage)


if __name__ == "__main__":
    main()
