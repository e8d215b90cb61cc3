"""`python guardian.py GRACE_S COMMAND…`: run a command that ends with whoever started it, and all that it started.

Its standard input is a pipe that nobody writes to: when whoever started it is gone, killed without a word too, the pipe ends. Then, or at
SIGTERM, the command's whole group is asked to end, and killed after GRACE_S seconds. Knows nothing about what the command does, and imports
nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(words: Sequence[str]) -> int:
    """Run the command; its exit code, 128 and the signal's number where one ended it."""
    grace_s, command = float(words[0]), list(words[1:])
    ending, ended = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error}", file=sys.stderr, flush=True)
        return 127
    threading.Thread(target=_watch_parent, args=(ending,), daemon=True).start()
    threading.Thread(target=_end_group, args=(child.pid, ending, ended, grace_s), daemon=True).start()
    while True:  # a signal's handler runs between two waits of this thread alone
        try:
            code = child.wait(timeout=0.2)
            break
        except subprocess.TimeoutExpired:
            continue
    ended.set()
    _kill(child.pid, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _watch_parent(ending: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    ending.set()


def _end_group(group: int, ending: threading.Event, ended: threading.Event, grace_s: float) -> None:
    ending.wait()
    _kill(group, signal.SIGTERM)
    if not ended.wait(grace_s):
        _kill(group, signal.SIGKILL)


def _kill(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
