"""Changes of tables that SQLite and PostgreSQL write differently; knows nothing about which tables there are.

Each takes the table as it shall be. SQLite cannot drop a column (before 3.35) or a constraint: there the table is made anew and filled.
"""

from __future__ import annotations

import sqlalchemy as sa


def add_columns(connection: sa.Connection, table: sa.Table, *names: str) -> None:
    """Add columns of `table`; one that may not be NULL needs a default of the server for the rows that are there."""
    for name in names:
        column = sa.schema.CreateColumn(table.c[name]).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, table.name)} ADD COLUMN {column}")


def drop_column(connection: sa.Connection, table: sa.Table, name: str) -> None:
    """Take away a column that `table` no longer has."""
    if connection.dialect.name == "sqlite":
        return _made_anew(connection, table)
    connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, table.name)} DROP COLUMN {_quoted(connection, name)}")
    return None


def allow_null(connection: sa.Connection, table: sa.Table, name: str) -> None:
    """Let a column be NULL, as `table` has it."""
    if connection.dialect.name == "sqlite":
        return _made_anew(connection, table)
    connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, table.name)} ALTER {_quoted(connection, name)} DROP NOT NULL")
    return None


def _made_anew(connection: sa.Connection, table: sa.Table) -> None:
    for index in sa.inspect(connection).get_indexes(table.name):  # their names are needed by the new table
        if index["name"] is not None:
            connection.exec_driver_sql(f"DROP INDEX {_quoted(connection, index['name'])}")
    old, columns = _quoted(connection, f"{table.name}_before"), ", ".join(_quoted(connection, column.name) for column in table.columns)
    connection.exec_driver_sql(f"ALTER TABLE {_quoted(connection, table.name)} RENAME TO {old}")
    table.create(connection)
    connection.exec_driver_sql(f"INSERT INTO {_quoted(connection, table.name)} ({columns}) SELECT {columns} FROM {old}")
    connection.exec_driver_sql(f"DROP TABLE {old}")


def _quoted(connection: sa.Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)
