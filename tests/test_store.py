"""The store opens, migrates, keeps what it promised and shows nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import sqlalchemy
import sqlalchemy as sa

from tunesmith.core.atomic import atomic_folder, write_atomic
from tunesmith.core.errors import StoreError
from tunesmith.store import tables
from tunesmith.store.store import Store


def test_a_finished_stage_is_found_again(tmp_path):
    store = Store.open(tmp_path)
    assert store.finished("d1") is None
    store.finish("d1", project="p", name="split", seconds=1.5, output={"rows": 3})
    store.finish("d1", project="p", name="split", seconds=2.0, output={"rows": 4})
    again = Store.open(tmp_path).finished("d1")
    assert (again["output"], again["seconds"]) == ({"rows": 4}, 2.0)


def test_sqlite_runs_in_wal_mode_with_full_sync(tmp_path):
    with Store.open(tmp_path).engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_a_newer_store_is_refused_with_the_remedy(tmp_path):
    store = Store.open(tmp_path)
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.meta).values(value="99"))
    with pytest.raises(StoreError, match="upgrade"):
        Store.open(tmp_path)


def test_a_file_in_the_way_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path / "file")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://tuna:h1dden@127.0.0.1:9/none",
        "postgresql+psycopg://tuna@127.0.0.1:9/none?password=h1dden",
        "postgresql+psycopg//tuna:h1dden@nowhere",
        "postgresql+psycopg://127.0.0.1:h1dden/none",
    ],
)
def test_an_error_never_shows_the_databases_password(tmp_path, url):
    with pytest.raises(StoreError) as refused:
        Store.open(tmp_path, url=url)
    assert "cannot be" in str(refused.value)
    assert "h1dden" not in str(refused.value)


def test_a_database_that_is_away_is_one_error_for_readers_too(tmp_path):
    store = Store.open(tmp_path)
    store.engine = sqlalchemy.create_engine("postgresql+psycopg://127.0.0.1:9/none")
    with pytest.raises(StoreError, match="cannot be read"):
        store.deployed()


def test_deployments_keep_their_history(tmp_path):
    store = Store.open(tmp_path)
    first = store.deploy("a", {"base": "x"}, reason="first")
    second = store.deploy("a", {"base": "y"}, reason="second")
    assert second > first
    assert store.deployed()["a"]["base"] == "y"
    with store.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.deployments)).scalar() == 2


def test_blobs_are_written_whole(tmp_path):
    store = Store.open(tmp_path)
    store.put_blob("files/one", b"abc")
    assert store.blobs.cat("files/one") == b"abc"
    assert [path.name for path in (tmp_path / "blobs" / "files").iterdir()] == ["one"]


def test_a_folder_appears_complete_or_not_at_all(tmp_path):
    final = tmp_path / "out"

    def interrupted():
        with atomic_folder(final) as work:
            (work / "a").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not final.exists()
    with atomic_folder(final) as work:
        (work / "b").write_text("y")
    assert [path.name for path in final.iterdir()] == ["b"]


def test_a_full_disk_is_said_and_leaves_no_file(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this platform")
    target = tmp_path / "x"
    (tmp_path / f".x.{os.getpid()}.part").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(target, "data")
    assert not target.exists()


WRITER = """
import sys
from tunesmith.store.store import Store
store = Store.open(sys.argv[1])
for n in range(100000):
    store.finish(f"d{n}", project="p", name="s", seconds=0.0, output={"n": n})
    print(n, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_row(tmp_path):
    for trial in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / str(trial))], stdout=subprocess.PIPE, text=True)
        acknowledged = [process.stdout.readline() for _ in range(20 + 10 * trial)]
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
        store = Store.open(tmp_path / str(trial))
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        last = int([line for line in acknowledged if line.strip()][-1])
        assert store.finished(f"d{last}")["output"] == {"n": last}
