"""Indexes of passages in a store: a folder each, named by its digest, and the names that people gave them; knows nothing about what is in
them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.errors import NotFound, StoreError, UsageError, nearest
from tunesmith.core.types import Record
from tunesmith.store.layout import Layout

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")
_LEAST_DIGEST = 6  # characters of a digest that can name an index


class NamedIndex(Record, frozen=True):
    """What a name means: the index's digest, and what it was made of (documents, sizes), for people and for making it again."""

    digest: str
    created: float
    recipe: dict[str, object] = {}


class Indexes:
    """The indexes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def folder(self, digest: str) -> Path:
        """Where the index of that digest lies, or will."""
        return self._layout.indexes / digest

    def names(self) -> dict[str, NamedIndex]:
        """Every name. Raises StoreError where they cannot be read."""
        try:
            return msgspec.json.decode(self._layout.index_names.read_bytes(), type=dict[str, NamedIndex])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            remedy = "remove the file; tunesmith data documents writes it"
            raise StoreError(f"the names cannot be read: {error}", where=str(self._layout.index_names), remedy=remedy) from error

    def name(self, name: str, index: NamedIndex) -> None:
        """Let the name mean that index from now on."""
        check_name(name)
        write_atomic(self._layout.index_names, msgspec.json.encode({**self.names(), name: index}))

    def find(self, word: str) -> str:
        """The digest of an index by its name, or by its digest or the beginning of it. Raises NotFound."""
        names = self.names()
        if word in names:
            return names[word].digest
        made = [path.name for path in self._layout.indexes.glob("*") if path.is_dir() and not path.name.startswith(".")]
        fits = [digest for digest in made if digest.startswith(word)] if len(word) >= _LEAST_DIGEST else []
        if len(fits) == 1:
            return fits[0]
        raise NotFound(
            f"no index of passages '{word}'" if not fits else f"several indexes begin with '{word}'",
            allowed=", ".join(fits or names) or "none: nothing was indexed here yet",
            remedy=nearest(word, names) or f"tunesmith data documents FOLDER --name {word if _NAME.fullmatch(word) else 'NAME'}",
        )


def check_name(name: str) -> None:
    """Raises UsageError for a name that could not stand in a word, such as MODEL?NAME."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"an index cannot be called '{name}'", where="--name", allowed="letters, digits, _ . - (at most 64)")
