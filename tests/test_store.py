"""The store opens, migrates, keeps what it promised and shows nothing half-written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest
import sqlalchemy
import sqlalchemy as sa

from tunesmith.core.atomic import atomic_folder, write_atomic
from tunesmith.core.deployment import Variant
from tunesmith.core.errors import ConfigError, NotFound, StoreError, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.monitor.status import status
from tunesmith.store import tables
from tunesmith.store.batches import Batches
from tunesmith.store.deployments import Deployments
from tunesmith.store.files import Files
from tunesmith.store.keys import Keys
from tunesmith.store.runs import Runs
from tunesmith.store.store import Store


def test_a_finished_stage_is_found_again(tmp_path):
    store = Store.open(tmp_path)
    assert store.finished("d1") is None
    store.finish("d1", project="p", name="split", seconds=1.5, output={"rows": 3})
    store.finish("d1", project="p", name="split", seconds=2.0, output={"rows": 4}, needs=["d0"])
    again = Store.open(tmp_path).finished("d1")
    assert (again["output"], again["seconds"], again["needs"]) == ({"rows": 4}, 2.0, ["d0"])


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
    for look in (Keys(store).listed, lambda: status(store), lambda: store.stages("split"), lambda: Runs(store).last("p")):
        with pytest.raises(StoreError, match=r"cannot be read.*\s+to mend it: look whether the database runs"):
            look()
    with pytest.raises(StoreError, match="cannot be read"):
        Deployments(store).in_force()


def on(base: str, **model) -> list[Variant]:
    return [Variant(name="v", model=ModelRef(base=base, **model))]


def test_deployments_keep_their_history(tmp_path):
    deployments = Deployments(Store.open(tmp_path))
    first = deployments.put("a", on("x"), reason="first", by="me")
    second = deployments.put("a", on("x", adapter="stages/d/adapter"))
    other = deployments.put("b", on("y"))
    again = Deployments(Store.open(tmp_path))
    assert again.in_force() == {"a": second, "b": other}
    assert again.history("a") == [second, first]
    assert (first.reason, first.by, again.version(first.version)) == ("first", "me", first)
    assert again.history("never") == []
    with pytest.raises(NotFound, match=r"no deployment has the version 99\s+allowed: 1 to 3"):
        again.version(99)


def test_what_cannot_be_a_deployment_is_not_written(tmp_path):
    deployments = Deployments(Store.open(tmp_path))
    for variants, strategy in (([], "one"), (on("x") * 2, "one"), (on("x"), "no such")):
        with pytest.raises((ConfigError, msgspec.ValidationError)):
            deployments.put("a", variants, strategy=strategy)
    assert deployments.in_force() == {}


def test_a_run_is_found_with_what_it_was_made_with(tmp_path):
    runs = Runs(Store.open(tmp_path))
    assert runs.last("p") is None
    first = runs.begin("p", "tunesmith run", ["--train.epochs", "2", "--gate.margin=0.5"], {"train": "d1", "report": "r1"})
    second = runs.begin("p", "tunesmith train", [], {"train": "d2"})
    runs.begin("another", "tunesmith run", [], {})
    runs.finish(first.id, "pass")
    assert runs.last("p") == second
    found = runs.last("p", stage="report")
    assert (found.id, found.overrides, found.decision) == (first.id, ("--train.epochs=2", "--gate.margin=0.5"), "pass")
    assert found.finished >= found.created
    assert runs.find(first.id[:10]) == found == runs.find(first.id)
    assert [run.id for run in runs.listed("p")] == [second.id, first.id]
    assert [run.id for run in runs.with_digest("d1")] == [first.id]
    assert runs.with_digest("train") == [], "a stage's name is no digest"
    for word in ("zzz", "", "%", "_"):
        with pytest.raises(NotFound, match="no run"):
            runs.find(word)


def test_the_beginning_of_two_runs_names_both(tmp_path):
    runs = Runs(Store.open(tmp_path))
    begun = [runs.begin("p", "x", [], {}).id for _ in range(17)]  # 17 ids over 16 letters: two begin alike
    letter = next(first for first in (number[0] for number in begun) if sum(number[0] == first for number in begun) > 1)
    with pytest.raises(UsageError, match="several runs begin with"):
        runs.find(letter)


@pytest.mark.parametrize(
    "words",
    [
        ["--serve.database", "postgresql+psycopg://u:h1dden@db/x"],
        ["--serve={database: 'postgresql+psycopg://u:h1dden@db/x'}"],
        ["--serve.webhooks=[{url: 'https://x', secret: whsec_h1dden}]"],
        ["--serve.blobs", "s3://key:h1dden@bucket"],
        ["--sources=[{path: 'postgresql://u:h1dden@db/x', query: select 1}]"],
        ["--sources=[{path: 'https://x/y?api_key=h1dden'}]"],
        ["--sources=[{path: 'https://x/y?X-Amz-Signature=h1dden'}]"],
        ["--sources=[{path: 'https://h1dden@x/y'}]"],
        ["--some.api-key", "h1dden"],
        ["--some.token", "h1dden"],
    ],
)
def test_no_secret_of_an_override_is_stored(tmp_path, words):
    store = Store.open(tmp_path)
    run = Runs(store).begin("p", "tunesmith run", ["--train.max_tokens=9", *words, "--train.epochs", "2"], {})
    assert run.overrides == ("--train.max_tokens=9", "--train.epochs=2")
    store.close()
    assert b"h1dden" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_blobs_are_written_whole(tmp_path):
    store = Store.open(tmp_path)
    store.blobs.put("files/one", io.BytesIO(b"abc"))
    assert store.blobs.open("files/one").read() == b"abc"
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


def test_a_batch_whose_file_was_deleted_before_it_began_has_that_fault(tmp_path):
    store = Store.open(tmp_path)
    files, batches = Files(store), Batches(store)
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}\n'
    made = [files.put(io.BytesIO(line), project="p", filename="x.jsonl", purpose="batch")["id"] for _ in range(2)]
    for file in made:
        batches.create(project="p", endpoint="/v1/completions", input_file=file, window="24h", metadata=None)
    files.delete(made[0], "p")
    faults = [batches.read(leased.row)[1] for _ in made if (leased := batches.lease(30)) is not None]
    assert [[fault["code"] for fault in of_batch] for of_batch in faults] == [["invalid_input_file"], []]
    store.close()
