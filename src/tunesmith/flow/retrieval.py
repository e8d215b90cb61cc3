"""Documents and solved rows → an index in the project's store, and what it finds for a question. Knows nothing about screens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import msgspec

from tunesmith.core.atomic import atomic_folder
from tunesmith.core.errors import UsageError
from tunesmith.core.passages import How, Passage, SourceText, TokenCount, cut, solved_rows
from tunesmith.core.row_kinds import as_examples
from tunesmith.core.types import Record
from tunesmith.core.words import words
from tunesmith.data.documents.reading import read
from tunesmith.flow.rows import RowReader, taught
from tunesmith.models.base import Encoding
from tunesmith.models.passage_index import Hit, IndexFacts, PassageIndex, digest_of
from tunesmith.models.retrieval import LoadedIndexes
from tunesmith.store.indexes import Indexes, NamedIndex, check_name
from tunesmith.store.store import Store

NO_ENCODER = "none"


class IndexRequest(Record, frozen=True):
    """What is to be looked up: documents (files, folders) and solved rows (`rows`: words that mean rows), and how it is cut: passages of at
    most `size` tokens of the encoder that share `overlap`. Without an encoder (`none`) passages are found by their words alone, and `size`
    counts words. `skip` names documents, or pages, that are left out."""

    documents: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    name: str = ""
    encoder: str = "minilm-l6-v2"
    size: int = 200
    overlap: int = 32
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.documents and not self.rows:
            raise UsageError("nothing to look up", allowed="documents (files, folders), or --rows DATA")
        if self.name:
            check_name(self.name)


class BuiltIndex(Record, frozen=True):
    """An index in the store: what it is, of how many files, which ones were left aside, and whether it was there already."""

    facts: IndexFacts
    name: str
    files: int
    aside: tuple[str, ...]
    cached: bool


def built(request: IndexRequest, desk: RowReader) -> BuiltIndex:
    """Read everything, then cut and index it; the same passages under the same encoder are one index. Raises before any work for what
    cannot be read (DataError), for sizes that the encoder would cut (UsageError), and for sealed rows."""
    documents = read(request.documents, desk.folder, request.skip) if request.documents else None
    solved = _solved(request.rows, desk)
    indexes = LoadedIndexes()
    encoder = None if request.encoder == NO_ENCODER else indexes.encoder(request.encoder, desk.catalog)
    texts = documents.texts if documents is not None else []
    passages = list({passage.id: passage for passage in [*_cut(texts, encoder, request), *solved]}.values())
    with closing(desk.store()) as store:
        names = Indexes(store.layout)
        folder = names.folder(digest_of(passages, encoder))
        cached = folder.is_dir()
        if cached:
            index = indexes.load(folder.name, store, desk.catalog)
        else:
            desk.progress.say(f"indexing {len(passages)} passages of {len({passage.source for passage in passages})} documents")
            index = PassageIndex.build(passages, encoder, tell=lambda done, total: desk.progress.bar("vectors", done, total))
            with atomic_folder(folder) as work:
                index.save(work)
        name = request.name or index.digest[:12]
        if request.name:
            recipe = msgspec.to_builtins(request)
            names.name(name, NamedIndex(digest=index.digest, created=time.time(), recipe=recipe))
    files, aside = (0, []) if documents is None else (documents.files, documents.aside)
    return BuiltIndex(facts=index.facts, name=name, files=files, aside=tuple(aside), cached=cached)


def _solved(words_: Sequence[str], desk: RowReader) -> list[Passage]:
    """Rows as passages. Raises UsageError for sealed ones: what is measured would be looked up."""
    solved: list[Passage] = []
    for word in words_:
        for rows in desk.read(word):
            if rows.sealed:
                raise UsageError(f"'{word}' are sealed rows: they would be looked up where they are asked", allowed="rows to train on")
            solved += solved_rows(as_examples(taught(rows).rows))
    return solved


def _cut(texts: Sequence[SourceText], encoder: Encoding | None, request: IndexRequest) -> list[Passage]:
    if encoder is not None and request.size > encoder.max_tokens:
        what = f"passages of {request.size} tokens would be cut: '{encoder.name}' reads {encoder.max_tokens}"
        raise UsageError(what, where="--size", allowed=f"at most {encoder.max_tokens}")
    return cut(texts, counting(encoder), size=request.size, overlap=request.overlap)


def counting(encoder: Encoding | None) -> TokenCount:
    """What counts the tokens of a text: the encoder; without one its words."""
    return (lambda text: len(words(text))) if encoder is None else (lambda text: len(encoder.ids(text)))


def looked_up(word: str, questions: Sequence[str], k: int, how: How | None, desk: RowReader) -> tuple[IndexFacts, list[list[Hit]]]:
    """The best passages of an index for each question. Raises NotFound for an index that is not there."""
    if not questions:
        raise UsageError("no question", allowed="at least one")
    with closing(desk.store()) as store:
        index = _index(word, store, desk)
        return index.facts, index.search(questions, k, how or index.ways[-1])


def _index(word: str, store: Store, desk: RowReader) -> PassageIndex:
    return LoadedIndexes().load(Indexes(store.layout).find(word), store, desk.catalog)


def listed(desk: RowReader) -> list[dict[str, Any]]:
    """The indexes that have names, newest first."""
    with closing(desk.store()) as store:
        names = Indexes(store.layout).names()
    newest = sorted(names.items(), key=lambda pair: -pair[1].created)
    return [{"name": name, **msgspec.structs.asdict(index)} for name, index in newest]
