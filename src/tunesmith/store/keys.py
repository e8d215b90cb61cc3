"""API keys in the store: made, listed, revoked, rotated, recognised; knows nothing about HTTP.

A key is 32 random bytes, so guessing it from its plain SHA-256 is hopeless; the slow hashes and salts that passwords need would only cost
each request milliseconds. Only the hash is kept: a key is shown once.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence

import sqlalchemy as sa

from tunesmith.core.errors import UsageError
from tunesmith.store.paging import Missing, Row, new_id
from tunesmith.store.store import Store
from tunesmith.store.tables import api_keys

SCOPES = ("read", "train", "serve", "admin")
DEFAULT_PROJECT = "default"
_ENDED = "ended:"


class Keys:
    """The keys of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, name: str, *, project: str = DEFAULT_PROJECT, scopes: Sequence[str] = ("read", "train", "serve")) -> tuple[Row, str]:
        """A new key and its secret, which cannot be read again. Raises UsageError for an unknown scope or an unusable project."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise UsageError(f"scopes are {', '.join(scopes) or 'none'}", allowed=", ".join(SCOPES))
        if not project.replace("-", "").replace("_", "").isalnum() or len(project) > 64:
            raise UsageError(f"'{project}' is no name for a project", allowed="letters, digits, - and _; at most 64 characters")
        with self._store.exclusive() as connection:
            return _insert(connection, name, project, sorted(set(scopes)))

    def listed(self) -> list[Row]:
        """All keys, the oldest first, the revoked ones too."""
        with self._store.reading() as connection:
            return list(connection.execute(sa.select(api_keys).order_by(api_keys.c.seq)).mappings())

    def revoke(self, number: str) -> Row:
        """End a key; a running server refuses it within seconds. Raises Missing."""
        with self._store.exclusive() as connection:
            row = _find(connection, number)
            if row["revoked"] is None or row["revoked"] > time.time():
                connection.execute(sa.update(api_keys).where(api_keys.c.id == number).values(revoked=time.time(), hash=_ended(row)))
            return _find(connection, number)

    def rotate(self, number: str, *, grace_s: float = 0.0) -> tuple[Row, str]:
        """A new key with the same name, project and scopes; the old one ends now, or after `grace_s`. Raises Missing."""
        with self._store.exclusive() as connection:
            old, now = _find(connection, number), time.time()
            ends = {"revoked": now + grace_s} | ({"hash": _ended(old)} if grace_s <= 0 else {})
            if old["revoked"] is None or old["revoked"] > now:
                connection.execute(sa.update(api_keys).where(api_keys.c.id == number).values(**ends))
            return _insert(connection, old["name"], old["project"], old["scopes"])

    def recognised(self, secret: str) -> Row | None:
        """The key of that secret when it is in force."""
        wanted = hashed(secret)
        with self._store.reading() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.hash == wanted)).mappings().first()
        if row is None or not hmac.compare_digest(row["hash"], wanted):
            return None
        if row["revoked"] is not None and row["revoked"] <= time.time():
            self.sweep()
            return None
        return row

    def sweep(self) -> int:
        """End for good every key whose time is up, so that a clock that goes back revives none; returns how many."""
        due = [api_keys.c.revoked <= time.time(), api_keys.c.hash.not_like(f"{_ENDED}%")]
        with self._store.reading() as connection:
            if connection.execute(sa.select(api_keys.c.id).where(*due).limit(1)).first() is None:
                return 0
        with self._store.exclusive() as connection:
            rows = list(connection.execute(sa.select(api_keys).where(*due)).mappings())
            for row in rows:
                connection.execute(sa.update(api_keys).where(api_keys.c.id == row["id"]).values(hash=_ended(row)))
        return len(rows)

    def exist(self) -> bool:
        """Whether any key was ever made: from then on requests need one. Revoking the last one must not open the server to everybody."""
        with self._store.reading() as connection:
            return connection.execute(sa.select(api_keys.c.id).limit(1)).first() is not None


def hashed(secret: str) -> str:
    """What the store keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _ended(row: Row) -> str:
    """What stands in place of the hash of a key that has ended: no secret has it, whatever the clock says."""
    return f"{_ENDED}{row['id']}"


def _insert(connection: sa.Connection, name: str, project: str, scopes: list[str]) -> tuple[Row, str]:
    secret = f"sk-tunesmith-{secrets.token_urlsafe(32)}"
    row = {"id": new_id("key_"), "created": time.time(), "project": project, "name": name, "scopes": scopes}
    connection.execute(sa.insert(api_keys).values(**row, hash=hashed(secret), hint=secret[-4:]))
    return _find(connection, str(row["id"])), secret


def _find(connection: sa.Connection, number: str) -> Row:
    row = connection.execute(sa.select(api_keys).where(api_keys.c.id == number)).mappings().first()
    if row is None:
        raise Missing("API key", number)
    return row
