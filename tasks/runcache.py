"""One stage and DVC's run cache: `python runcache.py find|fetch|push STAGE`, in a workspace.

find: is there a result of these very inputs and parameters on this machine? fetch: the same, of the remote too, and
bring it here. Both print "current" (the workspace holds it), "cached" (`dvc repro` will take it from the cache) or
"absent" as their last line. push: send the result to the remote.

Why not `dvc pull --run-cache` and `dvc push --run-cache`: they carry the whole run cache every time, but not the
metrics and plots that DVC leaves to git (`cache: false`), without which no stage of another clone is found in it. Here
the entry of one stage travels with all files that it names.

This runs as a process of its own, so that the flows never import dvc. Some methods of `StageCache` that it uses are
not public; tests/tasks/test_runcache.py holds them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from dvc.exceptions import CheckoutError, CollectCacheError, DownloadError, UploadError
from dvc.repo import Repo
from dvc.stage.cache import _can_hash, _get_stage_hash


def find(repo: Repo, stage: Any) -> None:
    with repo.lock:
        current = not stage.changed()
    if current:
        print("current")
    else:
        _tell(repo, stage, _key(stage))


def fetch(repo: Repo, stage: Any) -> None:
    with repo.lock:
        known = not (stage.changed_stage() or stage.changed_deps())
    if known:
        try:  # dvc.lock speaks of these inputs: what it names may be in the remote
            repo.pull([stage.addressing])
        except (CheckoutError, DownloadError) as error:
            print(f"not in the remote by dvc.lock: {error}")
        find(repo, stage)
        return
    if key := _key(stage):
        _fetch_entry(repo, stage, key)
    _tell(repo, stage, key)


def _tell(repo: Repo, stage: Any, key: str | None) -> None:
    """After `_key`, which writes today's inputs into `stage`: asked now, the stage would say that nothing changed."""
    cached = _cached(repo, stage) if key else None
    print("cached" if cached and cached.outs_cached() else "absent")


def push(repo: Repo, stage: Any) -> None:
    """Files first: what the remote's run cache names must be there."""
    cache, remote = repo.stage_cache, _remote(repo)
    key = _key(stage)
    cached = _cached(repo, stage) if key else None
    if not key or not cached or not cached.outs_cached():  # a frozen stage, which was never run here
        repo.push([stage.addressing])
        return
    for files in cached.get_used_objs().values():
        failed = repo.cloud.push(files).failed
        if failed:
            raise UploadError(len(failed))
    for name in os.listdir(cache._get_cache_dir(key)):
        path = remote.fs.join(remote.path, "runs", key[:2], key, name)
        if not name.endswith(".partial") and not remote.fs.exists(path):
            remote.fs.makedirs(remote.fs.parent(path), exist_ok=True)
            remote.fs.put_file(cache._get_cache_path(key, name), path)


def _fetch_entry(repo: Repo, stage: Any, key: str) -> None:
    cache, remote = repo.stage_cache, _remote(repo)
    folder = remote.fs.join(remote.path, "runs", key[:2], key)
    if not remote.fs.exists(folder):
        return
    for entry in remote.fs.find(folder):
        local = cache._get_cache_path(key, remote.fs.name(entry))
        if not os.path.exists(local):
            os.makedirs(os.path.dirname(local), exist_ok=True)
            remote.fs.get_file(entry, f"{local}.partial")
            os.replace(f"{local}.partial", local)
    cached = _cached(repo, stage)
    try:
        for files in cached.get_used_objs().values() if cached else ():
            repo.cloud.pull(files)
    except CollectCacheError as error:
        print(f"the remote names files that it does not have: {error}")


def _remote(repo: Repo) -> Any:
    return repo.cloud.get_remote_odb(None, "fetch", hash_name="md5-dos2unix")


def _key(stage: Any) -> str | None:
    """The name of the stage's entry, by the inputs that lie in the workspace; None if it has or can have none."""
    if not all(dep.exists for dep in stage.deps if dep.protocol == "local" and dep.def_path != "params.yaml"):
        return None
    stage.save_deps()
    return _get_stage_hash(stage) if _can_hash(stage) else None


def _cached(repo: Repo, stage: Any) -> Any:
    """The stage as its newest entry of this machine has it, or None."""
    entry = repo.stage_cache._load(stage)
    return repo.stage_cache._create_stage(entry, wdir=stage.wdir) if entry else None


def main() -> None:
    action, name = {"find": find, "fetch": fetch, "push": push}[sys.argv[1]], sys.argv[2]
    with Repo() as repo:
        (stage,) = repo.stage.collect(name)
        action(repo, stage)


if __name__ == "__main__":
    main()
