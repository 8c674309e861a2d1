"""Run a command that never outlives its caller: `python guard.py SECONDS COMMAND...`, started in its own session.

Standard input is a pipe whose other end the caller holds. The pipe closes when the caller ends, even by SIGKILL, which
runs no handler. Then the whole process group gets SIGINT, and SIGKILL after SECONDS. Only the standard library is
imported, because this process exists for as long as a stage runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time


def main() -> None:
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for the command only; this process waits for its end
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    orphaned = threading.Event()
    threading.Thread(target=stop_when_orphaned, args=(seconds, orphaned), daemon=True).start()
    code = process.wait()
    if orphaned.is_set():  # nobody else is left to end what the command started
        os.killpg(0, signal.SIGKILL)
    sys.exit(code if code >= 0 else 128 - code)  # as a shell reports it: 137 after SIGKILL


def stop_when_orphaned(seconds: float, orphaned: threading.Event) -> None:
    while os.read(0, 1):
        pass
    orphaned.set()
    os.killpg(0, signal.SIGINT)
    time.sleep(seconds)  # if the command ends in time, the main thread ends this process
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
