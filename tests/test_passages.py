"""Texts become passages that lose nothing, keep their places and fit into the encoder; an index finds what brute force finds."""

from __future__ import annotations

import random

import numpy as np
import pytest

import tiny
from tunesmith.core.errors import DataError, StoreError, UsageError
from tunesmith.core.passages import Passage, SourceText, cut, solved_rows
from tunesmith.core.types import Example, Message
from tunesmith.core.words import words
from tunesmith.models.encoder import Encoder
from tunesmith.models.passage_index import WAYS, PassageIndex, facts_of

MANUAL = """Before anything else, read this.

# Pump

## Mounting

Screw the pump to the wall. Leave ten centimetres on each side! Is the wall of plaster? Then use the long dowels.

The hose comes from below.

## Care

```sh
# not a heading
clean --all
```

- Once a week: rinse the filter.
- Once a year: change the seal.

Spares
------
Order number 4711.
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return Encoder(tiny.encoder(tmp_path_factory.mktemp("encoder")), name="tiny", digest="d")


def by_words(text):
    """Two marks, and a token for each word."""
    return 2 + len(text.split())


def covered(source, passages):
    """Every character that is no space is in a passage, and each passage is what stands at its place."""
    seen = [character.isspace() for character in source.text]
    for passage in passages:
        assert (passage.source, passage.page, passage.part) == (source.source, source.page, source.part)
        assert passage.text == source.text[passage.start : passage.end]
        assert passage.text.strip() == passage.text != ""
        seen[passage.start : passage.end] = [True] * (passage.end - passage.start)
    return all(seen)


def test_passages_follow_headings_and_know_their_place():
    source = SourceText(source="manual.pdf", text=MANUAL, page=3)
    passages = cut([source], by_words, size=24, overlap=6)
    assert covered(source, passages)
    assert [passage.heading for passage in passages][:3] == ["", "", "Pump > Mounting"]
    assert passages[1].text.startswith("# Pump")
    assert passages[2].text.startswith("Leave ten centimetres"), "whole sentences are shared"
    care = next(passage for passage in passages if passage.text.startswith("## Care"))
    assert (care.heading, "# not a heading" in care.text) == ("Pump", True)
    spares = next(passage for passage in passages if "4711" in passage.text)
    assert (spares.heading, spares.text.split("\n")[0]) == ("Pump", "Spares")
    assert (spares.place, spares.address) == ("manual.pdf, page 3", "manual.pdf#page=3")
    assert all(by_words(passage.indexed) <= 24 for passage in passages)
    assert len({passage.id for passage in passages}) == len(passages)


LONG = {
    "sentences": "The wall is wet. " * 300,
    "one sentence": "and so on " * 2_000,
    "one word": "x" * 40_000,
    "no spaces": "壁は濡れている。" * 500,
    "lines": "name: a; price: 3\n" * 400,
    "headings": "# a\n\n" * 500 + "end",
    "a long heading": "# " + "very long " * 400 + "\n\nwords under it. " * 30,
    "hostile hashes": "# a" + " #" * 50_000 + "b",
    "blank": " \n\t" * 20_000 + "x",
    "fences": "```\n" * 4_001,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_no_passage_is_longer_than_the_encoder_reads(kind, encoder):
    """By a word count that sees any word as one token, and by a real tokenizer that splits words anywhere."""
    source = SourceText(source="a", text=LONG[kind])
    for count, size in ((by_words, 40), (lambda text: len(encoder.ids(text)), encoder.max_tokens)):
        source = source if size == 40 else SourceText(source="a", text=LONG[kind][-6_000:])
        passages = cut([source], count, size=size, overlap=size // 4)
        assert covered(source, passages)
        assert max(count(passage.indexed) for passage in passages) <= size
        assert max(len(passage.text) for passage in passages) <= 16 * size
        assert sum(len(passage.text) for passage in passages) <= 2 * len(source.text), "what is shared is bounded"


@pytest.mark.parametrize(("size", "overlap"), [(8, 0), (40, 30), (40, -1)])
def test_sizes_that_cannot_be_are_refused(size, overlap):
    with pytest.raises(UsageError, match="allowed"):
        cut([SourceText(source="a", text="b")], by_words, size=size, overlap=overlap)


TOPICS = ["bank", "credit", "agreement", "yes", "no", "Ohio", "York", "signed", "sentence", "named", "入力", "June"]


def made(n=60, seed=0):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(TOPICS, k=rng.randint(3, 12))) for _ in range(n)]
    return [Passage(id=str(i), source=f"{i % 7}.md", start=0, end=len(text), text=text) for i, text in enumerate(texts)]


def ranks(scores, positive):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    order = [i for i in order if scores[i] > 0 or not positive]
    return {i: rank for rank, i in enumerate(order, start=1)}


@pytest.mark.slow
def test_what_is_found_is_what_brute_force_finds(encoder, tmp_path):
    import bm25s

    passages = made()
    index = PassageIndex.build(passages, encoder)
    own = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    own.index([list(words(passage.text)) for passage in passages], show_progress=False)
    queries = ["who signed the credit agreement?", "Ohio 入力", "York York June " * 60, "nothing of it"]
    vectors = encoder([encoder.ids(passage.text) for passage in passages])
    for query in queries:
        scores = own.get_scores(list(words(query)))
        hits = index.search([query], 5, "words")[0]
        assert [hit.score for hit in hits] == [float(score) for score in sorted(scores, reverse=True)[:5] if score > 0]
        parts = [encoder.ids(query)[at : at + encoder.max_tokens] for at in range(0, len(encoder.ids(query)), encoder.max_tokens)]
        if len(parts) > 1:
            continue  # several parts: below
        cosines = vectors @ encoder(parts)[0]
        near, worded = ranks(list(cosines), False), ranks(list(scores), True)
        assert [hit.passage.id for hit in index.search([query], 7, "vectors")[0]] == [str(i) for i in sorted(near, key=near.get)[:7]]
        fused = {i: 1 / (60 + near[i]) + (1 / (60 + worded[i]) if i in worded else 0) for i in near}
        best = sorted(fused, key=lambda i: (-fused[i], i))[:9]
        found = index.search([query], 9, "fused")[0]
        assert [hit.passage.id for hit in found] == [str(i) for i in best]
        assert [hit.score for hit in found] == pytest.approx([fused[i] for i in best])
    together = index.search(queries * 40, 4)
    for query, hits in zip(queries * 40, together, strict=True):
        assert [hit.passage for hit in hits] == [hit.passage for hit in index.search([query], 4)[0]]
    assert index.search(["nothing of it"], 5, "words") == [[]]

    tmp_path.joinpath("index").mkdir()
    index.save(tmp_path / "index")
    again = PassageIndex.load(tmp_path / "index", lambda name: {"tiny": encoder}[name])
    assert (again.digest, again.facts, again.search(queries, 6)) == (index.digest, index.facts, index.search(queries, 6))
    assert facts_of(tmp_path / "index").sources == 7
    other = Encoder(tmp_path_encoder(encoder, tmp_path), name="tiny", digest="other")
    with pytest.raises(StoreError, match="not the one"):
        PassageIndex.load(tmp_path / "index", lambda _: other)
    (tmp_path / "index" / "passages.jsonl").write_text("")
    with pytest.raises(StoreError, match=r"passages\.jsonl: the file is damaged"):
        PassageIndex.load(tmp_path / "index", lambda _: encoder)


def tmp_path_encoder(encoder, folder):
    return tiny.encoder(folder / "other")


def test_an_index_of_words_alone_needs_no_encoder(tmp_path):
    index = PassageIndex.build(made(5))
    assert index.ways == ("words",)
    with pytest.raises(UsageError, match="allowed: k from 1, how words"):
        index.search(["x"], 3)
    index.save(tmp_path)
    assert PassageIndex.load(tmp_path, lambda name: pytest.fail(name)).search(["bank"], 2, "words") == index.search(["bank"], 2, "words")
    signs = [Passage(id="1", source="a", start=0, end=3, text="...")]
    assert PassageIndex.build(signs).search(["bank"], 2, "words") == [[]]
    with pytest.raises(DataError, match="no passage"):
        PassageIndex.build([])


def test_solved_rows_are_looked_up_by_their_questions(encoder):
    rows = [
        Example(id=str(i), messages=(Message(role="user", content=question), Message(role="assistant", content=answer)), origin=f"r:{i}")
        for i, (question, answer) in enumerate([("who signed?", "York York York"), ("which bank?", "Ohio")])
    ]
    passages = solved_rows(rows)
    index = PassageIndex.build(passages, encoder)
    assert index.search(["York"], 1, "words") == [[]], "an answer's words do not lead to it"
    assert index.search(["bank"], 1, "words")[0][0].passage.text == "Question: which bank?\nAnswer: Ohio"
    assert index.search(["who signed?"], 1, "vectors")[0][0].passage.place == "r:0"
    assert set(index.ways) == set(WAYS)
    long = PassageIndex.build(solved_rows([rows[0], Example(id="l", messages=(Message(role="user", content="bank " * 999),))]), encoder)
    assert long.facts.longer == 1
    assert np.allclose(np.linalg.norm(long.vectors, axis=1), 1)
