"""Seconds of the stages that work in parts, by one process and by several: `python benchmarks/parts.py score encode`.

Run it in a workspace whose pipeline is done (`make run`), on a quiet machine. A stage reads its inputs
there and writes into a folder that is deleted afterwards. Numbers of processes take turns, so a slow hour
hits all of them. The results must have the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def workspace(folder: Path, outs: list[str]) -> None:
    """The parameters, and links to all of data/ but what the stage writes."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "data").mkdir()
    for path in (ROOT / "data").iterdir():
        if f"data/{path.name}" not in outs:
            (folder / "data" / path.name).symlink_to(path)


def seconds(folder: Path, name: str, processes: int) -> float:
    """From the command's start to its end, imports included."""
    shutil.rmtree(folder / ".checkpoints", ignore_errors=True)
    environment = os.environ | {"LPO_PROCESSES": str(processes), "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lpo.cli", name], cwd=folder, env=environment, check=True)
    return time.perf_counter() - start


def written(folder: Path, outs: list[str]) -> dict[str, bytes]:
    paths = [path for out in outs for path in [folder / out, *sorted((folder / out).rglob("*"))]]
    files = [path for path in paths if path.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["score", "encode"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name in arguments.stages:
        taken: dict[int, list[float]] = {count: [] for count in arguments.processes}
        made: list[dict[str, bytes]] = []
        outs = stages[name]["outs"]
        with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
            folder = Path(temporary)
            workspace(folder, outs)
            for count in arguments.processes * arguments.repeats:
                taken[count].append(seconds(folder, name, count))
                made.append(written(folder, outs))
        assert made[0] and all(files == made[0] for files in made), f"{name}: the results differ"
        for count, times in taken.items():
            middle = statistics.median(times)
            print(f"{name}, {count} processes: median {middle:.1f} s, {min(times):.1f} to {max(times):.1f}")


if __name__ == "__main__":
    main()
