"""SQL by what it returns, code by its tests, and what the sandbox keeps out."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.types import Answer, Example, Message, Score, example_id
from tunesmith.evaluate import sandbox, sandbox_child
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.sandbox import run_python

TABLES = "create table person (id integer primary key, name text, age int, city text); create table pet (id integer primary key, owner int, kind text);"


def rated(name: str, reference: str, said: str, meta: dict[str, str] | None = None, **options: object) -> Score:
    messages = (Message(role="user", content="q"), Message(role="assistant", content=reference))
    example = Example(id=example_id(messages), messages=messages, meta=meta or {})
    return metric(name, **options)(example, Answer(text=said))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("SELECT name FROM person WHERE age > 5", 1),
        ("Here it is:\n```sql\nselect p.name from person p where not p.age <= 5;\n```", 1),
        ("SELECT name FROM person WHERE age >= 5", 0),
        ("SELECT DISTINCT name FROM person WHERE age > 5", 0),
        ("SELECT name, age FROM person WHERE age > 5", 0),
        ("SELECT nme FROM person", 0),
        ("DROP TABLE person", 0),
        ("select 1; select 2", 0),
        ("", 0),
        ("with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n", 0),
        ("select a.name from person a, person b, person c, person d", 0),
    ],
)
def test_sql_by_what_it_returns(said: str, value: float) -> None:
    assert rated("sql", "select name from person where age > 5", said, setup=TABLES, timeout_s=0.3).value == value


def test_sql_order_counts_only_where_it_is_asked_for() -> None:
    assert rated("sql", "select id from person", "select id from person order by id desc", setup=TABLES).value == 1
    assert rated("sql", "select id from person order by id", "select id from person order by id desc", setup=TABLES).value == 0


def test_sql_with_given_rows_and_faults() -> None:
    data = {"setup": "create table t (a int); insert into t values (1), (2)"}
    assert rated("sql", "select max(a) from t", "select 2", data).value == 1
    assert rated("sql", "select nothing from t", "select 2", data).value is None
    assert rated("sql", "select 1", "select 1").value is None
    with pytest.raises(ConfigError, match="the setup fails"):
        rated("sql", "select 1", "select 1", setup="create tabel x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("def add(a, b):\n    return a + b", 1),
        ("Sure!\n```python\ndef add(a, b):\n    return b + a\n```\nDone.", 1),
        ("def add(a, b):\n    return a - b", 0),
        ("import sys; sys.exit(0)", 0),
        ("import os; os._exit(0)", 0),
        ("def add(a, b):\n    while True: pass", 0),
        ("this is no Python", 0),
    ],
)
def test_code_by_its_tests(said: str, value: float) -> None:
    assert rated("code_tests", "x", said, tests="assert add(1, 2) == 3", timeout_s=1.0).value == value


def test_code_that_continues_its_prefix() -> None:
    meta = {"prefix": "def add(a, b):\n    '''Add.'''\n", "tests": "assert add(1, 2) == 3"}
    assert rated("code_tests", "x", "    return a + b\n", meta).value == 1
    assert rated("code_tests", "x", "def add(a, b):\n    return a + b\n", meta).value == 1
    assert rated("code_tests", "x", "    return 0\n", meta).detail == "AssertionError"
    assert rated("code_tests", "x", "pass").value is None


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import subprocess; subprocess.run(['true'])",
        "import os; assert os.system('true') == 0",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 0)",
        "open('/etc/passwd').read()",
        "open('/proc/self/environ').read()",
        "open('{outside}').read()",
        "open('{outside}', 'w')",
        "import os; os.remove('{outside}')",
        "import os; os.chmod('{outside}', 0)",
        "import os; os.truncate('{outside}', 0)",
        "import os; os.open('{outside}', os.O_RDONLY | os.O_TRUNC)",
        "import os; os.link('{outside}', 'here'); open('here').read()",
        "import os; os.symlink('{outside}', 'here'); open('here').read()",
        "import sqlite3; sqlite3.connect('{outside}').execute('create table t (a)')",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 50, 1 << 50))",
        # what a program can take hold of in its own interpreter: its modules' own parts, the frames that called it, the libraries below
        "import os, _posixsubprocess as p\nr, w = os.pipe()\n"
        "p.fork_exec([b'/bin/true'], [b'/bin/true'], True, (), None, None, -1, -1, -1, -1, -1, -1, r, w, True, False, -1, None, None, None, -1, None, False)",
        "import sys\nframe = sys._getframe()\nwhile frame.f_back: frame = frame.f_back\n"
        "frame.f_globals['os'].open('{outside}', frame.f_globals['os'].O_RDONLY)",
        "import gc\nfor one in gc.get_objects():\n  if callable(one) and getattr(one, '__name__', '') in ('guard', 'look', 'shut_in'): one.__code__ = (lambda *_: None).__code__\n"
        "open('{outside}', 'w')",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.fork() >= 0 or libc.vfork() >= 0 or libc.unshare(0x10000000) == 0 or libc.open(b'{outside}', 1) >= 0",
        "import ctypes\nlibc = ctypes.CDLL(None)\nassert libc.mount(b'a', b'/mnt', b'tmpfs', 0, None) == 0 or libc.ptrace(16, 1, 0, 0) == 0 or libc.setuid(1) == 0",
    ],
)  # fmt: skip
def test_nothing_gets_out_of_the_sandbox(program: str, tmp_path: Path) -> None:
    outside = tmp_path / "kept"
    outside.write_text("kept")
    mode, before = outside.stat().st_mode, psutil.Process().children(recursive=True)
    ran = run_python(program.replace("{outside}", str(outside)))
    assert not ran.finished, ran.output
    assert (outside.read_text(), outside.stat().st_mode) == ("kept", mode)
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


def test_without_a_boundary_nothing_runs_unless_the_operator_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without Landlock."""
    monkeypatch.setattr(sandbox_child, "landlock_version", lambda: 0)
    with pytest.raises(UsageError, match="no boundary"):
        run_python("print(1)")
    sandbox.accept("process")
    try:
        assert run_python("print(1)").finished
        refused = run_python("open('/etc/passwd').read()")
    finally:
        sandbox.accept("kernel")
    assert not refused.finished
    assert "the sandbox refuses to open /etc/passwd" in refused.output


@pytest.mark.slow
def test_a_bad_pattern_takes_no_longer_than_its_time() -> None:
    slow = rated("regex", "x", "a" * 40 + "b", pattern=r"(a+)+$")
    assert slow.value is None or slow.value == 0
    assert rated("regex", r"(x+x+)+y", "x" * 5000).value in (None, 0)
    assert rated("regex", "9" * 5000, "x").value is None
    assert rated("json_fields", '{"a": 1}', "[" * 1500).value == 0
    assert rated("json_valid", "x", "```\n" + "\n" * 50_000 + "{", fence=True).value == 0
    assert rated("json_valid", "x", '```json\n\n {"a": 1}\n\n```\n', fence=True).value == 1


@pytest.mark.slow
def test_the_sandbox_limits_and_lets_work() -> None:
    assert not run_python("x = bytearray(1 << 33)", timeout_s=5).finished
    assert run_python("while True: pass", timeout_s=0.5).timed_out
    assert not run_python("while True: print('x' * 100000)", timeout_s=5).finished
    work = run_python("import json, math, collections, re\nopen('mine', 'w').write('1')\nprint(open('mine').read(), json.dumps([math.pi]))")
    assert work.finished
    assert work.output.strip().startswith("1 [3.14")
    assert not run_python("import os\nassert 'HOME' not in os.environ\nraise SystemExit(0)").finished
