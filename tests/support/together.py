"""Processes that work together as under torchrun, forked: a process of torchrun's own imports for seven seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

PATIENCE = 300.0  # seconds


def together(work: Callable[[], None], folder: Path, count: int = 2) -> None:
    """Run `work` in `count` processes of one group; what they raise is told. `folder` holds their notes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def member(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            work()
        except BaseException:
            (folder / f"failed-{rank}.txt").write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)  # what other tests left to be done at the end belongs to the parent

    members = [multiprocessing.get_context("fork").Process(target=member, args=(rank,)) for rank in range(count)]
    try:
        for process in members:
            process.start()
        for process in members:
            process.join(PATIENCE)
        told = "\n".join(file.read_text() for file in sorted(folder.glob("failed-*.txt")))
        codes = [process.exitcode for process in members]
        assert codes == [0] * count, f"exit codes {codes}\n{told}"
    finally:
        for process in members:
            process.kill()
