"""Who is signed in to the pages: a token for each browser, good for as long as the key that it was given for; knows nothing about cookies.

A token is 32 random bytes of which only the SHA-256 is kept. Every server over the store knows it, and a restart forgets none.
"""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa

from tunesmith.store.keys import Keys, hashed
from tunesmith.store.paging import Row
from tunesmith.store.store import Store
from tunesmith.store.tables import api_keys, sessions

LASTS_S = 12 * 3600.0


class Sessions:
    """The sessions of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, secret: str) -> str | None:
        """A token for whoever has this key; None where it is no key in force."""
        key = Keys(self._store).recognised(secret)
        if key is None:
            return None
        token, now = secrets.token_urlsafe(32), time.time()
        with self._store.writing() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.expires <= now))
            connection.execute(sa.insert(sessions).values(hash=hashed(token), key=key["id"], created=now, expires=now + LASTS_S))
        return token

    def recognised(self, token: str) -> Row | None:
        """The key that the token was given for, where both are in force."""
        now = time.time()
        query = (
            sa.select(api_keys)
            .join(sessions, sessions.c.key == api_keys.c.id)
            .where(sessions.c.hash == hashed(token), sessions.c.expires > now)
            .where(sa.or_(api_keys.c.revoked.is_(None), api_keys.c.revoked > now), api_keys.c.hash.not_like("ended:%"))
        )
        with self._store.reading() as connection:
            return connection.execute(query).mappings().first()

    def end(self, token: str) -> None:
        """Sign out."""
        with self._store.writing() as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.hash == hashed(token)))
