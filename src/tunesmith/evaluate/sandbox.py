"""Runs Python that a model or a client wrote, in a process of its own with nothing to reach; knows nothing about what it should compute.

The boundary is kept by the Linux kernel (Landlock and seccomp, see `sandbox_child.py`): no file but Python's own libraries and an empty
folder, no network, no further process, limits on time, memory and output, nothing of the caller's environment. Where a system has none, a
program is refused unless the operator named the weaker one (`python_boundary: process`), which only guards against accidents.

Not kept by it: a program may fill its time, its memory and its folder; and one that attacks the harness in its own process can pretend to
have passed, so that what it says of itself is no proof against its author.
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
from typing import Literal, NamedTuple, get_args

from tunesmith.core.errors import UsageError
from tunesmith.evaluate import sandbox_child

MEMORY_BYTES = 1 << 30
OUTPUT_BYTES = 1 << 20
Boundary = Literal["kernel", "process"]
_accepted: Boundary = "kernel"


class Ran(NamedTuple):
    """How a program ended: whether it ran to its last line, whether it was stopped by the clock, and the end of what it printed."""

    finished: bool
    timed_out: bool
    output: str


def accept(boundary: Boundary) -> None:
    """The weakest boundary that the operator accepts from now on in this process."""
    global _accepted
    if boundary not in get_args(Boundary):
        raise UsageError(f"the boundary '{boundary}'", where="python_boundary", allowed=", ".join(get_args(Boundary)))
    _accepted = boundary


def accepted() -> Boundary:
    """The weakest boundary that the operator accepts."""
    return _accepted


def boundary() -> Boundary:
    """The boundary in which a program would run: the kernel's wherever there is one. Raises UsageError where there is none that the
    operator accepts."""
    if sandbox_child.landlock_version():
        return "kernel"
    if _accepted == "process" and os.name == "posix":
        return "process"
    raise UsageError(
        "this system has no boundary for foreign Python",
        allowed="Linux 5.13 or newer with Landlock, on x86_64 or aarch64",
        remedy="run it there; for programs that are trusted python_boundary: process in tunesmith.yaml gives a guard against accidents",
    )


def run_python(program: str, *, timeout_s: float = 10.0, memory_bytes: int = MEMORY_BYTES) -> Ran:
    """Run a whole program and tell how it ended; an uncaught exception, an early exit, a limit reached all are "not finished".

    Raises UsageError where there is no boundary to run it in.
    """
    kind, word = boundary(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        arguments = [kind, str(folder), str(int(timeout_s) + 2), str(memory_bytes), str(OUTPUT_BYTES)]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(Path(sandbox_child.__file__)), *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            timed_out = _wait(process, word, timeout_s)
            output.seek(0)
            printed = output.read(OUTPUT_BYTES).decode("utf-8", errors="replace")
    if process.returncode == sandbox_child.NO_BOUNDARY and kind == "kernel":
        what = f"the kernel refuses the boundary for foreign Python: {printed.strip()}"
        raise UsageError(what, remedy="run it outside of what forbids it, such as a container's own filter")
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
