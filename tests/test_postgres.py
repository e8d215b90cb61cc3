"""The store over a real PostgreSQL, started for these tests in a folder of its own."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import socket
import subprocess

import pytest

from tunesmith.core.errors import StoreError
from tunesmith.core.store import Store
from tunesmith.core.types import Interaction, Message

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
    for parent in folder.parents[:-1]:
        os.chmod(parent, os.stat(parent).st_mode | 0o055)
    return ["runuser", "-u", "postgres", "--"]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    if not BINARIES:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    folder = tmp_path_factory.mktemp("postgres")
    owner, binaries = _as_owner(folder), BINARIES[-1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subprocess.run([*owner, f"{binaries}/initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "tester"], check=True, capture_output=True)
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start"], check=True)
    yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    subprocess.run([*owner, f"{binaries}/pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop"], check=True, capture_output=True)


@pytest.mark.slow
def test_stages_deployments_and_blobs(database, tmp_path):
    store = Store.open(tmp_path, url=database)
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 1})
    store.finish("d", project="p", name="s", seconds=1.0, output={"a": 2})
    assert Store.open(tmp_path, url=database).finished("d")["output"] == {"a": 2}
    first, second = store.deploy("m", {"base": "x"}, reason="r"), store.deploy("m", {"base": "y"}, reason="r")
    assert second > first
    assert store.deployed()["m"]["base"] == "y"


@pytest.mark.slow
def test_the_log_of_requests_is_read_back_by_monitoring(database, tmp_path):
    from tunesmith.monitor.log import InteractionLog
    from tunesmith.monitor.status import status

    store = Store.open(tmp_path, url=database)
    log = InteractionLog(store.engine)
    one = Interaction(
        id="chatcmpl-1", created=1.0, alias="a", variant="v", messages=(Message(role="user", content="q"),), answer="x",
        finish_reason="stop", prompt_tokens=3, completion_tokens=2, first_token_s=0.1, total_s=0.2,
    )  # fmt: skip
    log.write(one).result(timeout=10)
    log.write(one).result(timeout=10)
    log.close()
    found = status(store.engine)
    assert (found["requests"], found["completion_tokens"]) == (1, 2), "the same request is logged once"


def test_a_database_that_is_not_there_is_one_clear_error(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path, url="postgresql+psycopg://nobody@127.0.0.1:9/none")
