"""A real PostgreSQL, started for the tests in a folder of its own."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa

PASSWORD = "no-list-of-processes-shows-this"
BINARIES = sorted(glob.glob("/usr/lib/postgresql/*/bin"))


def _as_owner(folder):
    """PostgreSQL refuses root: where we are root, it runs as the user that its package made."""
    if os.getuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("running as root and there is no user 'postgres'")
    shutil.chown(folder, "postgres")
    return ["runuser", "-u", "postgres", "--"]


@pytest.fixture(scope="module")
def postgres():
    if not BINARIES:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with started() as url:
        yield url


@contextlib.contextmanager
def started():
    """The URL of a server that runs for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # pytest's own folders are closed to other users
    owner, binaries = _as_owner(folder), BINARIES[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run([*owner, f"{binaries}/initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "tester"], check=True, capture_output=True)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start"], check=True)
    yield f"postgresql+psycopg://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop"], check=True, capture_output=True)
    shutil.rmtree(folder)


@pytest.fixture
def database(postgres):
    """The URL of a fresh database."""
    name = f"test_{secrets.token_hex(4)}"
    with sa.create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    return postgres.rpartition("/")[0] + f"/{name}"
