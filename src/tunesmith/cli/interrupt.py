"""Ctrl-C ends a command within two seconds, whatever its threads wait for; knows nothing about commands.

Python joins the threads of pools before it ends, and looks for signals only between two steps of the main thread: a request that a slow
server holds, or one long operation on tensors, would outlast ctrl-C. Everything that a command keeps survives a kill at any moment, so
after a moment for a clean end the process just ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

GRACE_S = 1.5
_INTERRUPTED = 130


def watch(grace_s: float = GRACE_S) -> None:
    """From now on the process ends `grace_s` after its first SIGINT at the latest. Does nothing where there is no such signal."""
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # the signal's number comes here at once, even from within one operation
    threading.Thread(target=_wait, args=(reading, grace_s), name="interrupt", daemon=True).start()


def _wait(reading: int, grace_s: float) -> None:
    while signal.SIGINT not in os.read(reading, 64):
        pass
    threading.Event().wait(grace_s)
    show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a bar may have hidden it
    os.write(2, f"{show_cursor}interrupted; what is finished is kept, run again to continue\n".encode())
    os._exit(_INTERRUPTED)
