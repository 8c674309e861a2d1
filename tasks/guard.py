"""Run a command and never outlive the caller: `python guard.py SECONDS COMMAND...`, started in a session of its own.

Standard input is a pipe whose other end the caller holds. When the caller ends, in whatever way (SIGKILL runs no
handler), the pipe closes, and the whole process group is stopped: SIGINT, after SECONDS SIGKILL. Only the standard
library is imported: this process stands by for as long as a stage runs.
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is meant for the command; this process waits for its end
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    orphaned = threading.Event()
    threading.Thread(target=stop_when_orphaned, args=(seconds, orphaned), daemon=True).start()
    code = process.wait()
    if orphaned.is_set():  # nobody else is left to end what the command leaves behind
        os.killpg(0, signal.SIGKILL)
    sys.exit(code if code >= 0 else 128 - code)  # as a shell says it: 137 after SIGKILL


def stop_when_orphaned(seconds: float, orphaned: threading.Event) -> None:
    while os.read(0, 1):
        pass
    orphaned.set()
    os.killpg(0, signal.SIGINT)
    time.sleep(seconds)  # if the command stops, the main thread ends all before that
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
