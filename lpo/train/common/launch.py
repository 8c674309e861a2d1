"""A training by one process a GPU, with nothing typed: the command starts itself again under torch.distributed.run.

    if not launch.by_several("tune", params, Path("params.yaml")):    # it ran, by several processes of this machine
        tune.run(params)                                              # it is for this process

How many there are is no parameter and in no key: params.yaml travels to other machines, and a training goes on with
another number of processes. Nothing listens on other addresses than 127.0.0.1: agent and processes find each other
through a file, see also `distributed.joined`. A process ends with the one that started it, and of several that fail
the first alone says why. For several machines see docs/operations.md.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer

from lpo.config import Params
from lpo.errors import LpoError

FOLDER = "LPO_TOGETHER"  # in a process that was started here: what its group shares
PARENT = "LPO_PARENT"  # the process that started it
GRACE = 5  # seconds between a signal and SIGKILL; Prefect's half waits for 8
PATIENCE = 2.0  # seconds in which a lost process is noticed: what fails meanwhile failed because of that


def processes(stage: str, params: Params) -> int:
    """How many processes train: one a visible GPU, on a CPU one; LPO_PROCESSES sets another number, up to the GPUs.

    A rollout has a prompt for each. Inside of torchrun it is 1: the others are there already.

    Raises:
        LpoError: if LPO_PROCESSES is no number above zero, or there is no CUDA where model.device asks for it.
    """
    if "WORLD_SIZE" in os.environ:
        return 1
    import torch

    from lpo.families import device_of
    from lpo.sampling.parts import wished

    count = wished() or 1
    if device_of(params.model).type == "cuda":
        gpus = torch.cuda.device_count()
        count = min(wished() or gpus, gpus)
    if stage == "tune" and count > (most := params.tune.smallest_rollout):
        typer.echo(f"tune: {most} of {count} processes, because its smallest rollout has {most} prompts", err=True)
        return most
    return count


def by_several(stage: str, params: Params, file: Path) -> bool:
    """Whether `lpo STAGE --params FILE` was run by several processes. False: there is to be one, and it is this one.

    Raises:
        SystemExit: if it failed.
    """
    if (count := processes(stage, params)) == 1:
        return False
    if code := start([stage, "--params", str(file)], count):
        sys.exit(code)
    return True


def start(words: Sequence[str], count: int) -> int:
    """Run `lpo WORDS` by `count` processes of this machine until all have ended, or one fails; then the others end.

    SIGTERM and SIGINT are passed on. Returns 0, or the exit code of a process that failed; 128 + N of signal N.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(count)))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # torch's own would listen on all addresses
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what failed is said by the process that did
    with tempfile.TemporaryDirectory(prefix="lpo-") as folder:
        os.environ |= {FOLDER: folder, PARENT: str(os.getpid())}
        options = {
            "nnodes": 1, "nproc-per-node": count, "max-restarts": 0, "local-addr": "127.0.0.1", "log-dir": folder,
            "rdzv-backend": "c10d", "rdzv-conf": "store_type=file", "rdzv-endpoint": f"{folder}/store",
            "shutdown-timeout": GRACE,
        }  # fmt: skip
        try:
            run.run(run.parse_args([*(f"--{k}={v}" for k, v in options.items()), "--module", "lpo.cli", *words]))
        except ChildFailedError as error:
            return _code(words[0], {rank: failure.exitcode for rank, failure in error.failures.items()}, count)
        except SignalException as error:
            return 128 + error.sigval
    return 0


def _threads(count: int) -> int:
    from lpo.sampling.parts import cores

    return max(1, cores() // count)


def _code(stage: str, codes: dict[int, int], count: int) -> int:
    """The exit code of the process that failed first. If it was killed it could say nothing, so that is said.

    codes: by rank, the earliest first; those that ended because of it were ended by SIGTERM.
    """
    rank, code = next((item for item in codes.items() if item[1] != -signal.SIGTERM), next(iter(codes.items())))
    if code > 0:
        return code
    what = f"process {rank + 1} of {count} was killed by {signal.Signals(-code).name}, so the others ended too"
    remedy = "if memory was short, lower the batch; start it again, and it goes on from its last checkpoint"
    typer.secho(str(LpoError(what, stage, remedy)), fg=typer.colors.RED, err=True)
    return 128 - code


def is_first() -> bool:
    """Whether this is the only process of a command, or the one of several that writes."""
    return os.environ.get("RANK", "0") == "0"


def follow() -> None:
    """In a process that `start` started: end when that one does, and leave Ctrl-C to it. Elsewhere do nothing."""
    if PARENT not in os.environ:
        return
    parent = int(os.environ[PARENT])
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end(error: Exception) -> None:
    """In a process that `start` started: say why it failed, unless another one failed before, and end at once.

    At once, because the threads of a process group that has lost a member may never end. Elsewhere do nothing.
    """
    if FOLDER not in os.environ:
        return
    mistake = isinstance(error, LpoError)
    if not mistake:
        time.sleep(PATIENCE)  # where another process was lost, this one only shows it, and is ended meanwhile
    try:
        os.close(os.open(Path(os.environ[FOLDER], "failed"), os.O_CREAT | os.O_EXCL))
        typer.secho(str(error) if mistake else traceback.format_exc(), fg=typer.colors.RED, err=True)
    except OSError:
        pass  # another one has said it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if mistake else 1)
