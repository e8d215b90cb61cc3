"""Stores of every version become today's, without loss, whenever they are killed, on SQLite and on PostgreSQL."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys

import pytest
import sqlalchemy as sa

from tunesmith.core.deployment import Deployment, Variant
from tunesmith.core.errors import StoreError
from tunesmith.core.model_ref import ModelRef
from tunesmith.monitor.status import status
from tunesmith.store import migrations, tables
from tunesmith.store.database import engine_of
from tunesmith.store.deployments import Deployments
from tunesmith.store.permissions import TunedModels
from tunesmith.store.store import Store

RUN, MOVED = "a" * 32, "b" * 32


def brought_to(engine, version, folder):
    """A database as the Tunesmith of that version left it."""
    with engine.begin() as connection:
        for name in migrations.steps()[:version]:
            importlib.import_module(f"tunesmith.store.migrations.{name}").upgrade(connection, folder)
        connection.execute(sa.text("INSERT INTO meta (key, value) VALUES ('version', :version)"), {"version": str(version)})


def version_2(engine, folder):
    """A store of version 2 with rows in the tables that change. Its folder was moved after the deployment of `moved`."""
    brought_to(engine, 2, folder)
    first, second = (importlib.import_module(f"tunesmith.store.migrations.{name}") for name in migrations.steps()[:2])
    (folder / "stages" / MOVED / "adapter").mkdir(parents=True)
    in_run = {"base": "/data/models/org--base", "adapter": f"{folder}/stages/{RUN}/adapter", "base_name": "org/base", "run": RUN}
    was_moved = {"base": "/home/me/base", "adapter": f"/old/stages/{MOVED}/adapter", "base_name": "./base", "run": MOVED}
    records = [
        ("plain", in_run),
        ("moved", was_moved),
        ("plain", {"base": "/home/me/base", "adapter": "/elsewhere/adapter"}),
        ("alone", {"base": "x"}),
    ]
    talk = {"variant": "plain", "status": 200, "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2, "first_token_s": 0.5}
    talk |= {"total_s": 1.0, "messages": "[]", "answer": "yes"}
    model = {"project": "p", "base": "org/base", "created": 1.0, "checkpoint": False}
    with engine.begin() as connection:
        for i, (alias, record) in enumerate(records):
            row = {"alias": alias, "created": float(i), "reason": f"why {i}", "record": json.dumps(record)}
            connection.execute(sa.insert(first.deployments).values(**row))
        connection.execute(
            sa.insert(first.stages).values(digest="d", project="p", name="split", created=1.0, seconds=2.0, output='{"a": 1}')
        )
        connection.execute(
            sa.insert(first.interactions), [{**talk, "id": f"c{i}", "created": float(i), "alias": "plain"} for i in range(3)]
        )
        for i in range(3):
            connection.execute(sa.insert(second.tuned_models).values(**model, id=f"ft:{i}", job=f"job{i}", adapter=f"jobs/{i}/adapter"))
        connection.execute(sa.delete(second.tuned_models).where(second.tuned_models.c.id == "ft:1"))


def check_version_2(store):
    deployments = Deployments(store)
    named = {"name": "tuned"}
    assert [(one.version, one.reason, one.variants) for one in deployments.history("plain")] == [
        (3, "why 2", (Variant(**named, model=ModelRef(base="/home/me/base", adapter="/elsewhere/adapter")),)),
        (1, "why 0", (Variant(**named, model=ModelRef(base="org/base", adapter=f"stages/{RUN}/adapter", made_by=f"run:{RUN}")),)),
    ]
    in_force = deployments.in_force()
    assert in_force["alone"] == Deployment(
        alias="alone", version=4, created=3.0, reason="why 3", variants=(Variant(name="base", model=ModelRef(base="x")),)
    )
    moved = ModelRef(base="/home/me/base", adapter=f"stages/{MOVED}/adapter", made_by=f"run:{MOVED}")
    assert in_force["moved"].variants == (Variant(**named, model=moved),)
    assert deployments.put("next", [Variant(name="v", model=ModelRef(base="x"))]).version == 5, "numbers go on"
    assert (store.finished("d")["output"], store.finished("d")["needs"]) == ({"a": 1}, [])
    with store.reading() as connection:
        rows = connection.execute(sa.select(tables.interactions).order_by(tables.interactions.c.created)).mappings().all()
    assert [(row["id"], row["answer"], row["endpoint"], row["project"], row["deployment"]) for row in rows] == [
        (f"c{i}", "yes", "chat.completions", "", None) for i in range(3)
    ]
    assert (status(store)["requests"], status(store)["total_s"]["p50"]["value"]) == (3, pytest.approx(1.0, rel=0.01))
    models = TunedModels(store).listed("p")
    assert [(row["seq"], row["id"], row["adapter"], row["weights"]) for row in models] == [
        (1, "ft:0", "jobs/0/adapter", None),
        (3, "ft:2", "jobs/2/adapter", None),
    ]
    with store.writing() as connection:
        row = {"id": "ft:whole", "created": 2.0, "project": "p", "job": "j", "base": "b", "weights": "jobs/9/run", "checkpoint": False}
        connection.execute(sa.insert(tables.tuned_models).values(**row))
    assert [row["seq"] for row in TunedModels(store).listed("p")] == [1, 3, 4]


def shape(engine):
    """Everything that a database knows of its tables, whatever the order of columns."""
    look = sa.inspect(engine)
    return {
        name: {
            "columns": {column["name"]: (str(column["type"]), column["nullable"], _default(column)) for column in look.get_columns(name)},
            "key": look.get_pk_constraint(name)["constrained_columns"],
            "unique": sorted(sorted(unique["column_names"]) for unique in look.get_unique_constraints(name)),
            "indexes": sorted(
                (
                    index["name"],
                    index["column_names"],
                    bool(index["unique"]),
                    sorted((key, str(value)) for key, value in index["dialect_options"].items()),
                )
                for index in look.get_indexes(name)
            ),
        }
        for name in look.get_table_names()
    }


def _default(column):
    found = column["default"]
    return "a sequence" if found and found.startswith("nextval") else found


def test_a_store_of_all_migrations_is_what_the_tables_say(tmp_path):
    fresh = engine_of(f"sqlite:///{tmp_path / 'fresh.db'}")
    tables.metadata.create_all(fresh)
    assert shape(Store.open(tmp_path / "store").engine) == shape(fresh)


@pytest.mark.slow
def test_a_store_of_all_migrations_is_what_the_tables_say_on_postgresql(database, tmp_path):
    migrated = shape(Store.open(tmp_path, url=database).engine)
    name = sa.engine.make_url(database).database
    with sa.create_engine(database.rpartition("/")[0] + "/postgres", isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE fresh_{name}")
    fresh = engine_of(database.rpartition("/")[0] + f"/fresh_{name}")
    tables.metadata.create_all(fresh)
    assert migrated == shape(fresh)


@pytest.mark.slow
def test_a_column_more_needs_one_step_more(tmp_path):
    """Steps are frozen: nothing of them changes with today's tables."""
    names = migrations.steps()
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for name in names:
        module = importlib.import_module(f"tunesmith.store.migrations.{name}")
        assert not any(value is table for value in vars(module).values() for table in tables.metadata.tables.values())
    for version in range(len(names)):  # each step alone gives what the next one expects, also in an empty store
        engine = engine_of(f"sqlite:///{tmp_path / f'{version}.db'}")
        if version:
            brought_to(engine, version, tmp_path)
        migrations.migrate(engine, tmp_path)
        assert set(shape(engine)) == {*tables.metadata.tables}


@pytest.mark.slow
def test_a_store_of_version_2_migrates_without_loss(tmp_path):
    version_2(engine_of(f"sqlite:///{tmp_path / 'tunesmith.db'}"), tmp_path)
    check_version_2(Store.open(tmp_path))
    assert shape(Store.open(tmp_path).engine) == shape(Store.open(tmp_path / "fresh").engine)


@pytest.mark.slow
def test_a_store_of_version_2_migrates_without_loss_on_postgresql(database, tmp_path):
    version_2(engine_of(database), tmp_path)
    check_version_2(Store.open(tmp_path, url=database))


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from tunesmith.store.store import Store

left = int(sys.argv[2])

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def statement(connection, cursor, text, *_):
    global left
    left -= text.startswith(("ALTER", "CREATE", "DROP", "INSERT", "UPDATE", "DELETE"))
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

Store.open(sys.argv[1])
"""


@pytest.mark.slow
def test_a_store_killed_while_it_migrates_is_whole(tmp_path):
    killed = 0
    for statements in (1, 9, 14, 20, 26, 33):
        folder = tmp_path / str(statements)
        folder.mkdir()
        version_2(engine_of(f"sqlite:///{folder / 'tunesmith.db'}"), folder)
        process = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(statements)], capture_output=True, text=True)
        assert process.returncode in (0, -signal.SIGKILL), process.stderr
        killed += process.returncode != 0
        check_version_2(Store.open(folder))
    assert killed >= 5, "the kills came after the migration's end"


def test_a_migration_that_fails_says_what_failed_and_changes_nothing(tmp_path):
    engine = engine_of(f"sqlite:///{tmp_path / 'tunesmith.db'}")
    version_2(engine, tmp_path)
    before = shape(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (mine VARCHAR)")
        connection.exec_driver_sql("UPDATE deployments SET record = 'no json' WHERE version = 2")
    with pytest.raises(StoreError) as refused:
        Store.open(tmp_path)
    said = str(refused.value)
    assert "from version 2 to 3 (0003_runs_variants_feedback): deployment 2" in said
    assert "nothing of it was changed" in said
    assert "space" not in said
    assert shape(engine) == before | {"runs": shape(engine)["runs"]}
    with engine.begin() as connection:
        connection.exec_driver_sql('UPDATE deployments SET record = \'{"base": "x"}\' WHERE version = 2')
    with pytest.raises(StoreError, match="table runs already exists"):
        Store.open(tmp_path)


@pytest.mark.slow
def test_processes_that_open_a_fresh_database_at_once_all_get_it(database, tmp_path):
    words = [sys.executable, "-c", "import sys; from tunesmith.store.store import Store; Store.open(sys.argv[1], url=sys.argv[2])"]
    started = [subprocess.Popen([*words, str(tmp_path / str(i)), database], stderr=subprocess.PIPE, text=True) for i in range(4)]
    ended = [(process.communicate()[1], process.returncode) for process in started]
    assert [code for _, code in ended] == [0] * 4, ended


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="everything can be written")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="rights"):
        Store.open(tmp_path)
