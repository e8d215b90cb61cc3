"""What retrieval arms look things up in: indexes over the documents, cut in several sizes, or over the solved training rows; each lies in
the project's store under its digest, where a deployment finds it. Asks no model that answers."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.atomic import atomic_folder
from tunesmith.core.passages import Passage, Retrieval, cut, solved_id, solved_rows
from tunesmith.core.words import words
from tunesmith.flow.context import ProjectContext
from tunesmith.flow.decide.desk import WORDS, Desk
from tunesmith.models.base import Encoding
from tunesmith.models.passage_index import PassageIndex
from tunesmith.store.indexes import Indexes

# How passages stand before a question: with the request to name them (None: the usual template), and plainly, for answers of a fixed form.
PLAIN = "{passages}\n\n{question}"
TEMPLATES = {"plain": PLAIN, "citing": None}
SIZES = (100, 200)  # tokens of a passage


def over_rows(desk: Desk) -> str:
    """The digest of the index over the solved training rows."""
    if "rows" not in desk.indexes:
        desk.indexes["rows"] = _kept(desk, solved_rows(desk.train))
    return desk.indexes["rows"]


def solving(context: ProjectContext) -> dict[str, frozenset[str]]:
    """For each training row the ids of the passages that solve it: its own and its near-duplicates', which no row to come has beside it."""
    clusters = context.clusters(context.rows("train"))
    members: dict[str, set[str]] = {}
    for row_id, cluster in clusters.items():
        members.setdefault(cluster, set()).add(solved_id(row_id))
    return {row_id: frozenset(members[cluster]) for row_id, cluster in clusters.items()}


def shots(desk: Desk, k: int) -> Retrieval:
    """The `k` solved training rows that are most alike, as turns before the question: by the encoder's vectors, or by words."""
    return Retrieval(index=over_rows(desk), k=k, how="words" if desk.plan.encoder == WORDS else "vectors", turns=True)


def over_documents(desk: Desk, size: int) -> str:
    """The digest of the index over the documents, cut into passages of at most `size` tokens."""
    name = f"documents in {size} tokens"
    if name not in desk.indexes:
        encoder = _encoder(desk)
        count = (lambda text: len(words(text))) if encoder is None else (lambda text: len(encoder.ids(text)))
        desk.indexes[name] = _kept(desk, cut(desk.documents, count, size=size))
    return desk.indexes[name]


def document_indexes(desk: Desk) -> list[tuple[str, str]]:
    """(what it is called, its digest) of the index over the documents in each size."""
    sizes = SIZES[-1:] if desk.plan.quick else SIZES
    return [(f"of {size} tokens, ", over_documents(desk, size)) for size in sizes]


def ways_of(desk: Desk, indexes: Sequence[tuple[str, str]]) -> dict[str, Retrieval]:
    """Everything to choose from, by what it is called: each index (name, digest) with each number of passages, in each template."""
    return {
        f"{name}{k} passages, {form}": Retrieval(index=index, k=k, template=template)
        for name, index in indexes
        for k in desk.plan.passages
        for form, template in TEMPLATES.items()
    }


def _encoder(desk: Desk) -> Encoding | None:
    project = desk.project
    return None if desk.plan.encoder == WORDS else project.models.indexes.encoder(desk.plan.encoder, project.catalog)


def _kept(desk: Desk, passages: Sequence[Passage]) -> str:
    """The index of passages, written into the store unless it lies there."""
    index = PassageIndex.build(list({passage.id: passage for passage in passages}.values()), _encoder(desk))
    folder = Indexes(desk.project.store.layout).folder(index.digest)
    if not folder.is_dir():
        with atomic_folder(folder) as work:
            index.save(work)
    return index.digest
