"""Runs Python that a model wrote, in a process of its own with little to reach; knows nothing about what it should compute.

A guard against accidents and mischief by the way: no network, no further processes, no files outside its own empty folder but Python's,
limits on time, memory and output, nothing of the caller's environment. It is no wall against a determined attacker: evaluate models that
you do not trust inside a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tunesmith.core.errors import UsageError

MEMORY_BYTES = 1 << 30
OUTPUT_BYTES = 1 << 20

# Runs first in the child. The word that it prints last comes by the pipe and is known to no name that the program sees: a program that
# leaves early, with whatever exit code, has not passed.
_GUARD = """
import os, resource, sys
def _run(folder, seconds, memory, output):
    word = sys.stdin.readline()
    for limit, value in ((resource.RLIMIT_CPU, seconds + 1), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, output),
                         (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)):
        resource.setrlimit(limit, (value, value))
    inside = (folder + os.sep,)
    readable = inside + tuple({os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, *sys.path) if p})
    readable += ("/usr/share/zoneinfo/", "/dev/null", "/dev/urandom")
    closed = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "ctypes.", "pty.",
              "sys.addaudithook", "os.setxattr", "os.chown", "os.symlink", "os.link", "syslog.", "sqlite3.")
    changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.utime", "shutil.", "tempfile.")
    real, realfolder = os.path.realpath, os.path.dirname
    def guard(event, args):
        if event.startswith(closed):
            raise PermissionError("the sandbox refuses " + event)
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = real(os.fsdecode(args[0]))
            writes = set(str(args[1] or "")) & set("wax+") or isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            if not (path + os.sep).startswith(inside if writes and path != "/dev/null" else readable):
                raise PermissionError("the sandbox refuses to open " + path)
        if event.startswith(changes):
            for path in args[:2]:
                if isinstance(path, (str, bytes)) and not real(os.fsdecode(path)).startswith(inside):
                    raise PermissionError("the sandbox refuses " + event)
    with open(os.path.join(folder, "program.py"), encoding="utf-8") as file:
        program = compile(file.read(), "program.py", "exec")
    sys.addaudithook(guard)
    exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
    sys.stdout.flush()
    os.write(1, ("\\n" + word).encode())
_run(*[int(a) if a.isdigit() else a for a in sys.argv[1:]])
"""


class Ran(NamedTuple):
    """How a program ended: whether it ran to its last line, whether it was stopped by the clock, and the end of what it printed."""

    finished: bool
    timed_out: bool
    output: str


def run_python(program: str, *, timeout_s: float = 10.0, memory_bytes: int = MEMORY_BYTES) -> Ran:
    """Run a whole program and tell how it ended; an uncaught exception, an early exit, a limit reached all are "not finished".

    Raises UsageError on systems without process limits (Windows).
    """
    if os.name != "posix":
        raise UsageError("programs cannot be run in a sandbox here", allowed="Linux or macOS", remedy="evaluate in a container")
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandbox-") as made:
        folder = Path(made).resolve()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        arguments = [str(folder), str(int(timeout_s) + 1), str(memory_bytes), str(OUTPUT_BYTES)]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", _GUARD, *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            timed_out = _wait(process, word, timeout_s)
        printed = (folder / "output").read_bytes().decode("utf-8", errors="replace")
    text, _, last = printed.rstrip("\n").rpartition("\n")
    finished = process.returncode == 0 and last == word
    return Ran(finished, timed_out, (text if finished else printed)[-4000:])


def _wait(process: subprocess.Popen[bytes], word: str, timeout_s: float) -> bool:
    timed_out = False
    try:
        process.communicate(f"{word}\n".encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it may be gone already
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return timed_out
