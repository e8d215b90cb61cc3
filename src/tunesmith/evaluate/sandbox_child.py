"""The process in which foreign Python runs: it shuts itself in, then runs the program. Started as a script by `sandbox.py`, it imports
nothing of Tunesmith and knows nothing about what the program is for.

    python -I -B sandbox_child.py kernel|process FOLDER SECONDS MEMORY OUTPUT

`kernel` is a boundary that the kernel keeps, whatever the program does to the interpreter (frames, ctypes, modules of its own): Landlock
opens no file but Python's own libraries, read-only, and the folder; a seccomp filter lets only those system calls through that computing
and such files need. So there is no network, no further process, no signal to another one, no change of rights or owners, no trace of
others; all capabilities are dropped. `process` is a guard inside the interpreter, against accidents alone: a program that wants to can
leave it.

The word that is printed last comes by the pipe and is read only after the program has ended: a program that leaves early, with whatever
exit code, has not passed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
import sysconfig
import traceback
from typing import Any

NO_BOUNDARY = 97  # the exit code where the kernel gives none

# Landlock (linux/landlock.h): the rights over files by the version that brought them.
_RIGHTS_OF = ((1, 13), (2, 14), (3, 15), (5, 16))
_WRITE_FILE, _READ_FILE, _READ_DIR, _EXECUTE = 1 << 1, 1 << 2, 1 << 3, 1 << 0
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

# Of each processor: its number for seccomp, the calls that are let through, and those whose first words are looked at. Everything else is
# refused with EPERM: socket, execve, fork, kill, ptrace, mount, chmod, chown, keyctl, bpf, io_uring and whatever comes in later kernels.
_X86_64 = (
    0xC000003E,
    (0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 32, 33, 34, 35, 36, 37,
     38, 39, 40, 60, 61, 63, 72, 73, 74, 75, 77, 78, 79, 80, 81, 82, 83, 84, 87, 89, 95, 96, 97, 98, 99, 100, 102, 104, 107,
     108, 110, 111, 115, 118, 120, 121, 124, 127, 128, 130, 131, 137, 138, 140, 143, 145, 158, 186, 201, 202, 204, 213, 217,
     218, 219, 221, 228, 229, 230, 231, 232, 233, 258, 262, 263, 264, 267, 269, 270, 271, 273, 274, 281, 285, 290, 291, 292,
     293, 295, 296, 309, 316, 318, 319, 324, 326, 327, 328, 332, 334, 436, 439),
    {"clone": 56, "clone3": 435, "open": 2, "openat": 257, "ioctl": 16, "tgkill": 234, "prlimit64": 302, "prctl": 157},
)  # fmt: skip
_AARCH64 = (
    0xC00000B7,
    (17, 19, 20, 21, 22, 23, 24, 25, 32, 34, 35, 38, 43, 44, 46, 47, 48, 49, 50, 57, 59, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70,
     71, 72, 73, 78, 79, 80, 82, 83, 93, 94, 96, 98, 99, 100, 101, 102, 103, 113, 114, 115, 120, 121, 123, 124, 128, 132, 133,
     134, 135, 136, 137, 139, 141, 148, 150, 153, 155, 156, 158, 160, 163, 165, 166, 168, 169, 172, 173, 174, 175, 176, 177,
     178, 179, 214, 215, 216, 222, 223, 226, 227, 232, 233, 260, 276, 278, 279, 283, 285, 286, 287, 291, 293, 436, 439),
    {"clone": 220, "clone3": 435, "openat": 56, "ioctl": 29, "tgkill": 131, "prlimit64": 261, "prctl": 167},
)  # fmt: skip
PROCESSORS = {"x86_64": _X86_64, "aarch64": _AARCH64}
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
_CLONE_THREAD, _O_TRUNC, _O_ACCMODE, _PR_SET_NAME = 0x10000, 0o1000, 0o3, 15
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # what Python asks of its streams; none that types into a terminal


def landlock_version() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    if sys.platform != "linux" or platform.machine() not in PROCESSORS or sys.byteorder != "little":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


class _Refused(Exception):
    """The kernel does not give the boundary."""


def _must(result: int, what: str) -> int:
    if result < 0:
        raise _Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _drop_privileges(libc: Any) -> None:
    _must(libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _must(libc.capset(header, nothing), "capset")


def _landlock(libc: Any, readable: list[str], folder: str) -> None:
    version = landlock_version()
    if not version:
        raise _Refused("the kernel has no Landlock")
    every = (1 << max(bits for since, bits in _RIGHTS_OF if since <= version)) - 1
    ruleset = _must(libc.syscall(_CREATE_RULESET, struct.pack("Q", every), ctypes.c_size_t(8), ctypes.c_uint(0)), "Landlock")
    rules = [(path, _READ_FILE | _READ_DIR) for path in readable]
    rules += [(folder, every & ~_EXECUTE), ("/dev/null", _READ_FILE | _WRITE_FILE), ("/dev/urandom", _READ_FILE), ("/dev/zero", _READ_FILE)]
    for path, rights in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):
            rights &= ~_READ_DIR
        _must(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, place), 0), f"Landlock, {path}")
        os.close(place)
    _must(libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _filter() -> bytes:
    """The seccomp filter as classic BPF (struct sock_filter: code, jump if true, jump if false, operand)."""
    number, plain, looked = PROCESSORS[platform.machine()]

    def load(at: int) -> tuple[int, int, int, int]:
        return (0x20, 0, 0, at)

    def argument(n: int) -> tuple[int, int, int, int]:
        return load(16 + 8 * n)  # the low word

    def give(what: int) -> tuple[int, int, int, int]:
        return (0x06, 0, 0, what)

    def among(n: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        tests = [step for value in values for step in ((0x15, 0, 1, value), give(_ALLOW))]
        return [argument(n), *tests, give(_EPERM)]

    def opened(n: int) -> list[tuple[int, int, int, int]]:  # a file that is opened to be read may not be emptied by that
        return [argument(n), (0x54, 0, 0, _O_TRUNC | _O_ACCMODE), (0x15, 0, 1, _O_TRUNC), give(_EPERM), give(_ALLOW)]

    own = os.getpid()
    checks = {
        "clone": [argument(0), (0x45, 0, 1, _CLONE_THREAD), give(_ALLOW), give(_EPERM)],
        "clone3": [give(_ENOSYS)],
        "open": opened(1),
        "openat": opened(2),
        "ioctl": among(1, _IOCTLS),
        "tgkill": among(0, (own,)),
        "prlimit64": among(0, (0, own)),
        "prctl": among(0, (_PR_SET_NAME,)),
    }
    program = [load(4), (0x15, 1, 0, number), give(_EPERM), load(0)]
    for name, call in looked.items():
        program += [(0x15, 0, len(checks[name]), call), *checks[name]]
    for call in plain:
        program += [(0x15, 0, 1, call), give(_ALLOW)]
    program.append(give(_EPERM))
    return b"".join(struct.pack("HBBI", *step) for step in program)


def _seccomp(libc: Any) -> None:
    steps = _filter()
    held = ctypes.create_string_buffer(steps, len(steps))
    program = struct.pack("HxxxxxxP", len(steps) // 8, ctypes.addressof(held))
    _must(libc.prctl(22, 2, program, 0, 0), "seccomp")


def shut_in(folder: str) -> None:
    """Put this process behind the boundary. Raises when the kernel does not give it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with who started it
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)}
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"}
    _drop_privileges(libc)
    _landlock(libc, sorted(paths), folder)
    _seccomp(libc)


def guard(folder: str) -> None:
    """A guard inside the interpreter: what is used by accident is refused by name."""
    inside = (folder + os.sep,)
    readable = inside + tuple({os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix, *sys.path) if p})
    readable += ("/usr/share/zoneinfo/", "/dev/null", "/dev/urandom")
    closed = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.kill", "ctypes.", "pty.",
              "sys.addaudithook", "os.setxattr", "os.chown", "os.symlink", "os.link", "syslog.", "sqlite3.")  # fmt: skip
    changes = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.utime", "shutil.", "tempfile.")
    real = os.path.realpath

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event.startswith(closed):
            raise PermissionError("the sandbox refuses " + event)
        if event == "open" and isinstance(args[0], (str, bytes)):
            path = real(os.fsdecode(args[0]))
            writes = set(str(args[1] or "")) & set("wax+") or (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))
            if not (path + os.sep).startswith(inside if writes and path != "/dev/null" else readable):
                raise PermissionError("the sandbox refuses to open " + path)
        if event.startswith(changes):
            for path in args[:2]:
                if isinstance(path, (str, bytes)) and not real(os.fsdecode(path)).startswith(inside):
                    raise PermissionError("the sandbox refuses " + event)

    sys.addaudithook(look)


def main(kind: str, folder: str, seconds: int, memory: int, output: int) -> None:
    """Run `program.py` of the folder, with limits and behind the boundary of that kind."""
    word = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(limit, (value, value))
    with open(os.path.join(folder, "program.py"), encoding="utf-8") as file:
        source = file.read()
    if kind == "kernel":
        try:
            shut_in(folder)
        except (_Refused, OSError, AttributeError) as error:
            print(error)
            sys.exit(NO_BOUNDARY)
    program = compile(source, "program.py", "exec")
    if kind != "kernel":
        guard(folder)
    try:
        exec(program, {"__name__": "__main__", "__builtins__": __builtins__})
    except Exception as error:  # noqa: BLE001 - whatever the program raised: its own lines are shown, not this file's
        traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        sys.exit(1)
    sys.stdout.flush()
    os.write(1, b"\n" + os.read(word, 64))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
