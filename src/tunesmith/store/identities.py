"""What the weights that were deployed answer to probes, and what later looks found; knows nothing about how they are compared.

Of each variant's looks the newest are kept, longer those that found another model; a finding that begins is a webhook
(`tunesmith.identity.failed`), written with it.
"""

from __future__ import annotations

import time

import msgspec
import sqlalchemy as sa

from tunesmith.core.identity import IdentityCheck, IdentityReference
from tunesmith.store.deliveries import announce
from tunesmith.store.keys import DEFAULT_PROJECT
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import identity_checks, identity_references

EVENT = "tunesmith.identity.failed"
_KEPT, _KEPT_FINDINGS = 50, 500  # looks of a variant, and those that found another model
_FIELDS = [column for column in identity_checks.columns if column.name != "seq"]


class Identities:
    """References and looks of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reference(self, digest: str) -> IdentityReference | None:
        """What the weights behind these answers said; None where nobody has asked them."""
        query = sa.select(identity_references.c.reference).where(identity_references.c.digest == digest)
        with self._store.reading() as connection:
            text = connection.execute(query).scalar()
        return None if text is None else msgspec.json.decode(text, type=IdentityReference)

    def remember(self, references: dict[str, IdentityReference]) -> None:
        """Write references down, for a version that is about to be put in force."""
        with self._store.writing() as connection:
            keep_references(connection, references)

    def put(self, check: IdentityCheck) -> IdentityCheck:
        """Keep a look; returns it with its time. Where it is the first that finds another model, a webhook goes out."""
        row = msgspec.structs.asdict(check) | {"created": check.created or time.time()}
        mine = sa.and_(identity_checks.c.alias == check.alias, identity_checks.c.variant == check.variant)
        with self._store.exclusive() as connection:
            before = self._newest(connection, sa.and_(mine, identity_checks.c.deployment == check.deployment))
            connection.execute(sa.insert(identity_checks).values(**row))
            if check.verdict == "differs" and before != "differs":
                announce(connection, {"project": DEFAULT_PROJECT, "id": check.alias}, EVENT)  # type: ignore[arg-type]
            for which, most in ((identity_checks.c.verdict != "differs", _KEPT), (identity_checks.c.verdict == "differs", _KEPT_FINDINGS)):
                rows = sa.select(identity_checks.c.seq).where(mine, which).order_by(identity_checks.c.seq.desc())
                if (last := connection.execute(rows.offset(most).limit(1)).scalar()) is not None:
                    connection.execute(sa.delete(identity_checks).where(mine, which, identity_checks.c.seq <= last))
        return msgspec.structs.replace(check, created=row["created"])

    @staticmethod
    def _newest(connection: sa.Connection, which: sa.ColumnElement[bool]) -> str | None:
        """The verdict of the newest look of those that came to one."""
        query = sa.select(identity_checks.c.verdict).where(which, identity_checks.c.verdict != "unknown")
        verdict: str | None = connection.execute(query.order_by(identity_checks.c.seq.desc()).limit(1)).scalar()
        return verdict

    def newest(self) -> list[IdentityCheck]:
        """The newest look at each variant of each version."""
        place = (identity_checks.c.alias, identity_checks.c.deployment, identity_checks.c.variant)
        last = sa.select(sa.func.max(identity_checks.c.seq)).group_by(*place)
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(*_FIELDS).where(identity_checks.c.seq.in_(last))).mappings()
            return [_check(row) for row in rows]

    def of(self, alias: str) -> list[IdentityCheck]:
        """The looks at an alias, the newest first."""
        query = sa.select(*_FIELDS).where(identity_checks.c.alias == alias).order_by(identity_checks.c.seq.desc())
        with self._store.reading() as connection:
            return [_check(row) for row in connection.execute(query).mappings()]


def keep_references(connection: sa.Connection, references: dict[str, IdentityReference]) -> None:
    """Write references down, in the transaction that puts the deployment in force whose answers they are; newer ones take their places."""
    for digest, reference in references.items():
        connection.execute(sa.delete(identity_references).where(identity_references.c.digest == digest))
        row = {"digest": digest, "created": time.time(), "reference": msgspec.json.encode(reference).decode()}
        connection.execute(sa.insert(identity_references).values(**row))


def _check(row: Row) -> IdentityCheck:
    return msgspec.convert({str(key): value for key, value in row.items()}, IdentityCheck)
