"""A small workspace: a git repository with the project's dvc.yaml, code and base model, and little of everything else.

Commands run in processes of their own, as a person would run them. The workspace's copy of the code is what DVC hashes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from support.defaults import default_params

from lpo.files import file_hash

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("LPO_KILLS", "1"))  # of every stage in test_kill.py

LRM_STEPS, ROLLOUTS = 5 + KILLS, 3 + KILLS  # each with a checkpoint, so that all kills find something to resume
SMALL: dict[str, dict[str, Any]] = {
    "dataset": {
        "rendered_pairs": 240, "sampled_prompts": 4, "images_per_prompt": 2, "held_out_rendered_pairs": 40,
        "held_out_sampled_prompts": 2, "train_prompts": 40, "validation_prompts": 8, "test_prompts": 20,
        "num_inference_steps": 4,
    },
    "encode": {"shard_size": 128},  # more than one shard
    "reward": {
        "steps": LRM_STEPS, "warmup_steps": 2, "batch_size": 8, "validate_every": 3, "patience": LRM_STEPS,
        "checkpoint_every": 1,
    },
    "tune": {
        "prompts": 4 * ROLLOUTS, "prompts_per_rollout": 4, "num_inference_steps": 4, "batch_size": 8,
        "learning_rate": 2.0e-3, "ema_decay": 0.5, "validate_every": 1, "validation_prompts": 8, "checkpoint_every": 1,
        "beta": 2.0e4, "validation_scorers": ["aesthetic", "vqa"],  # so few prompts must gain something
        "guard": {"action": "flag", "reward_margin": 1.0, "diversity_floor": 0.5, "prompts": 2, "seeds": 2},
        "threshold": {"schedule": "constant", "low": 0.0, "high": 0.0},  # a reward of few steps sees small gaps
    },
    "evaluate": {"prompts": 16, "num_inference_steps": 4, "bootstrap": 100},
    "report": {"examples": 2},
    "promote": {  # whatever so small a training learns
        "win_rate_low": 0.0,
        "margins": dict.fromkeys(
            ["all_correct", "alignment", "aesthetics", "scorer_clip", "scorer_vqa", "scorer_aesthetic"], 10.0
        ),
    },
    "tracking": {"wandb": "disabled"},  # seconds of every training; tests/test_tracking.py has it
}  # fmt: skip
TRAININGS = ("vae", "scorer", "unet", "layout", "captions")  # of the base, in the order in which they run
TINY_PRETRAIN = {
    **{f"{part}_steps": 3 + KILLS for part in TRAININGS},
    **{f"{part}_batch_size": 4 for part in ("vae", "scorer", "unet")},
    **{f"{part}_learning_rate": 2.0e-2 for part in TRAININGS},  # a step done twice, or not at all, must show
    "scenes": 64, "gate_vae": 0.0, "gate_single": 0.0, "gate_plain": [0, 1], "gate_guided": 0.0,
    "near_miss_share": 0.5, "checkpoint_every": 1,
}  # fmt: skip

ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REPOSITORY),
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{f"GIT_{role}_NAME": "a" for role in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{role}_EMAIL": "a@b.c" for role in ("AUTHOR", "COMMITTER")},
    # The report shows the commit: with fixed dates, equal files are equal commits.
    **{f"GIT_{role}_DATE": "2000-01-01T00:00:00Z" for role in ("AUTHOR", "COMMITTER")},
}
DVC_CONFIG = """\
[core]
    analytics = false
    check_update = false
    remote = store
['remote "store"']
    url = ../../remote
"""


def make(folder: Path) -> Path:
    """A workspace that nothing was run in yet; its DVC remote is the folder `remote` beside it."""
    shutil.copytree(REPOSITORY / "lpo", folder / "lpo", ignore=shutil.ignore_patterns("__pycache__"))
    ignored = [f"{name}.gitignore" for name in ("", "data/", "data/collected/", "models/", "models/promoted/", ".dvc/")]
    for name in ("dvc.yaml", ".dvcignore", "metrics/base.json", *ignored):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("data/base", "data/scorers", "data/validators"):  # committed, as in the repository
        shutil.copytree(REPOSITORY / name, folder / name)
    (folder / "data/sources.json").write_text("{}\n")  # nothing was imported
    (folder / ".dvc/config").write_text(DVC_CONFIG)
    write_params(folder, SMALL)
    git(folder, "init", "-q")
    commit(folder)
    return folder


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put `changes` into a tree of parameters; sections merge key by key."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def write_params(folder: Path, changes: dict[str, dict[str, Any]]) -> None:
    """The default parameters with `changes`."""
    params = yaml.safe_load(default_params())
    merge(params, changes)
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def git(folder: Path, *words: str) -> str:
    return run(folder, "git", *words)


def dvc(folder: Path, *words: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *words)


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "files")


@contextmanager
def started(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, which ends with the block; what it prints goes to FOLDER.log."""
    site = {"DVC_SITE_CACHE_DIR": str(folder.parent / "site")}  # DVC's notes on its repositories, else in /var/tmp
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=os.environ | ENVIRONMENT | site, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def finish(folder: Path, process: Any) -> str:
    """What the command printed on both streams, when it has ended well."""
    code = process.wait()
    output = folder.with_suffix(".log").read_text()
    assert code == 0, f"{process.args} ended with {code}:\n{output[-6000:]}"
    return output


def run(folder: Path, *words: str) -> str:
    with started(folder, *words) as process:
        return finish(folder, process)


def kill(process: Any) -> None:
    """SIGKILL to the whole group: no handler runs, nothing is flushed."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ran(output: str) -> list[str]:
    """The stages that `dvc repro` ran, or would run (--dry)."""
    return re.findall(r"^Running stage '(\w+)':$", output, re.MULTILINE)


def stages(folder: Path) -> dict[str, Any]:
    """The stages of dvc.yaml."""
    return yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]


def names(items: list[Any]) -> list[str]:
    """The paths of a list in dvc.yaml, whose items are PATH or {PATH: options}."""
    return [item if isinstance(item, str) else next(iter(item)) for item in items]


def outs(stage: dict[str, Any]) -> list[str]:
    """Everything that a stage of dvc.yaml makes."""
    return [name for key in ("outs", "metrics", "plots") for name in names(stage.get(key, []))]


def hashes(folder: Path) -> dict[str, str]:
    """MD5 of every artifact by its path, from dvc.lock."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


def contents(folder: Path, *roots: str) -> dict[str, str]:
    """SHA-256 of every file under the roots, by its path."""
    files = (file for root in roots for file in (folder / root).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_hash(file) for file in files}


@contextmanager
def changed(folder: Path, section: str, key: str, value: Any) -> Iterator[None]:
    """Inside, one parameter of the workspace has another value."""
    path = folder / "params.yaml"
    before = path.read_text()
    params = yaml.safe_load(before)
    params[section][key] = value
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    try:
        yield
    finally:
        path.write_text(before)
