"""Texts of documents, and the passages that they are cut into, each of which knows where it stands; knows nothing about files, encoders
or models.

A passage is `text[start:end]` of one `SourceText`, so that it can be cited and found again. Cuts are made at headings (Markdown's, which
all readers write), then between paragraphs, sentences, words, characters. No passage is longer than `size` tokens with its heading, as the
encoder counts them: what reads it reads all of it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tunesmith.core.errors import ConfigError, UsageError
from tunesmith.core.types import Example, Record, address_of, digest, place_of

TokenCount = Callable[[str], int]
_CHARACTERS = 16  # characters a token at most: an encoder reads a word of any length as one unknown token
_LEAST_SIZE = 16
_SOLVED = "Question: {}\nAnswer: {}"


class SourceText(Record, frozen=True):
    """What one place of a document says: the whole, or its page (from 1), or a part that has a name (`sheet Prices`)."""

    source: str
    text: str
    page: int | None = None
    part: str = ""


class Passage(Record, frozen=True):
    """Some sentences of a document that are looked up together: `text` is what stands from `start` to `end` (characters) of its place.

    `heading` are the headings above it, `found_by` what it is looked up by where that is not heading and text (a solved row's question).
    """

    id: str
    source: str
    start: int
    end: int
    text: str
    page: int | None = None
    part: str = ""
    heading: str = ""
    found_by: str = ""

    @property
    def indexed(self) -> str:
        """The words that it is looked up by."""
        return self.found_by or (f"{self.heading}\n{self.text}" if self.heading else self.text)

    @property
    def solved(self) -> tuple[str, str] | None:
        """The question and the answer of a solved row; None of any other passage."""
        begin = _SOLVED.format(self.found_by, "")
        return (self.found_by, self.text.removeprefix(begin)) if self.found_by and self.text.startswith(begin) else None

    @property
    def place(self) -> str:
        """Where it stands, for people: `manual.pdf, page 3`."""
        return place_of(self.source, self.page, self.part)

    @property
    def address(self) -> str:
        """Where it stands, for programs: `manual.pdf#page=3`."""
        return address_of(self.source, self.page, self.part)


How = Literal["words", "vectors", "fused"]
MOST_PASSAGES = 64


class Retrieval(Record, frozen=True):
    """What a model looks up before it answers: the `k` best passages of an index (by its name or digest), found by `how` (None: all that
    the index has), in a `template` with the places {passages} and {question} (None: the usual one). With `turns` they are solved rows, and
    stand as turns of their own before the conversation, the best last, in place of a template."""

    index: str
    k: int = 4
    how: How | None = None
    template: str | None = None
    turns: bool = False

    def __post_init__(self) -> None:
        if self.turns and self.template is not None:
            raise ConfigError("a template for passages that stand as turns", where="retrieval.template", allowed="turns, or a template")
        if not 1 <= self.k <= MOST_PASSAGES:
            raise ConfigError(f"retrieval of {self.k} passages", where="retrieval.k", allowed=f"1 to {MOST_PASSAGES}")
        if self.template is not None:
            check_template(self.template)


PLACES = re.compile(r"\{(passages|question)\}")


def check_template(template: str) -> None:
    """Raises ConfigError for a template that has not each of its places once."""
    places = sorted(PLACES.findall(template))
    if places != ["passages", "question"]:
        named = ", ".join(f"{{{place}}}" for place in places) or "no place"
        raise ConfigError(f"a template for passages with {named}", where="template", allowed="{passages} once, {question} once")


def solved_id(row_id: str) -> str:
    """The id of a row as a passage."""
    return digest("row", row_id, size=8)


def solved_rows(rows: Iterable[Example]) -> list[Passage]:
    """Rows as passages that are looked up by their questions: the nearest solved ones are shown."""
    made = []
    for row in rows:
        question = "\n".join(turn.text for turn in row.prompt if turn.role == "user") or "\n".join(turn.text for turn in row.prompt)
        text = _SOLVED.format(question, row.answer)
        made.append(Passage(id=solved_id(row.id), source=row.origin or row.id, start=0, end=len(text), text=text, found_by=question))
    return made


def cut(texts: Iterable[SourceText], tokens: TokenCount, *, size: int = 200, overlap: int = 32) -> list[Passage]:
    """Passages of at most `size` tokens, heading and the encoder's own marks included; each begins with what ended the one before, whole
    sentences of at most `overlap` tokens. All words of the texts are in one. Raises UsageError for sizes that cannot be."""
    if size < _LEAST_SIZE or not 0 <= overlap <= size // 2:
        what = f"passages of {size} tokens that share {overlap}"
        raise UsageError(what, where="size, overlap", allowed=f"size from {_LEAST_SIZE}, overlap 0 to half of it")
    cutter = _Cutter(tokens, size, overlap)
    return [passage for text in texts for passage in cutter.passages(text)]


class _Unit(NamedTuple):
    """What is not cut: a sentence, or a piece of one that is too long. `opens` says that a paragraph begins with it."""

    start: int
    end: int
    tokens: int
    opens: bool


class _Section(NamedTuple):
    """From its headings to the next one. `above` are the headings over its own, which stand in its text; `path` all of them."""

    start: int
    end: int
    above: tuple[str, ...]
    path: tuple[str, ...]


class _Cutter:
    def __init__(self, tokens: TokenCount, size: int, overlap: int) -> None:
        self._tokens, self._size, self._overlap = tokens, size, overlap
        self._marks = tokens("")

    def passages(self, source: SourceText) -> Iterator[Passage]:
        for section in _sections(source.text):
            above, path = self._heading(section.above), self._heading(section.path)
            used = max(self._count(f"{heading}\n") if heading else 0 for heading in (above, path))
            for start, end in self._spans(source.text, section, self._size - self._marks - used):
                yield self._passage(source, start, end, above if start == section.start else path)

    def _passage(self, source: SourceText, start: int, end: int, heading: str) -> Passage:
        text = source.text[start:end]
        return Passage(
            id=digest(source.source, source.page, source.part, start, text, size=8),
            source=source.source,
            start=start,
            end=end,
            text=text,
            page=source.page,
            part=source.part,
            heading=heading,
        )

    def _count(self, text: str) -> int:
        return self._tokens(text) - self._marks

    def _heading(self, path: tuple[str, ...]) -> str:
        """The headings above a passage, as many of the last as take a quarter of it."""
        for first in range(len(path)):
            heading = " > ".join(path[first:])
            if self._count(heading) <= self._size // 4 and len(heading) <= self._size * _CHARACTERS // 4:
                return heading
        return ""

    def _spans(self, text: str, section: _Section, budget: int) -> Iterator[tuple[int, int]]:
        units = list(self._units(text, section, budget))
        first = 0
        while first < len(units):
            last = self._last(text, units, first, budget)
            yield units[first].start, units[last - 1].end
            if last == len(units):
                return
            again, shared = last, 0
            while again - 1 > first and shared + units[again - 1].tokens <= self._overlap:
                again -= 1
                shared += units[again].tokens
            # what is shared must leave room for the next unit, or nothing new would be in the next passage
            while again < last and self._size_of(text, units, again, last + 1) > budget:
                again += 1
            first = again

    def _last(self, text: str, units: Sequence[_Unit], first: int, budget: int) -> int:
        """The unit before which the passage from `first` ends: where it is full, or before the last paragraph of its second half."""
        last, total = first + 1, units[first].tokens
        while last < len(units) and total + units[last].tokens <= budget:
            total += units[last].tokens
            last += 1
        while last > first + 1 and self._size_of(text, units, first, last) > budget:
            last -= 1
        if last == len(units):
            return last
        left = sum(unit.tokens for unit in units[first:last])
        for end in range(last, first + 1, -1):
            if units[end].opens and 2 * left >= budget:
                return end
            left -= units[end - 1].tokens
        return last

    def _size_of(self, text: str, units: Sequence[_Unit], first: int, last: int) -> int:
        """Tokens of a span of units together, which may be more than theirs one by one; far too many where it has too many characters."""
        start, end = units[first].start, units[last - 1].end
        return self._count(text[start:end]) if end - start <= self._size * _CHARACTERS else self._size + 1

    def _units(self, text: str, section: _Section, budget: int) -> Iterator[_Unit]:
        for paragraph in _PARAGRAPH.finditer(text, section.start, section.end):
            opens = True
            for start, end in _sentences(text, paragraph.start(), paragraph.end()):
                for piece in self._pieces(text, start, end, budget):
                    yield _Unit(*piece, opens)
                    opens = False

    def _pieces(self, text: str, start: int, end: int, budget: int) -> Iterator[tuple[int, int, int]]:
        """(start, end, tokens) of a sentence, halved at its spaces (where it has none, anywhere) until each half is small enough."""
        waiting = [(start, end)]
        while waiting:
            start, end = waiting.pop()
            short = end - start <= self._size * _CHARACTERS
            count = self._count(text[start:end]) if short else self._size + 1
            if count <= budget or end - start <= 1:
                yield start, end, count
                continue
            middle = _middle(text, start, end)
            waiting += [_stripped(text, *half) for half in ((middle, end), (start, middle))]
            waiting = [(first, last) for first, last in waiting if first < last]


_HEADING = re.compile(r"^(#{1,6})[ \t]+(\S.*)$|^(\S.*)\n(=+|-{3,})[ \t]*$", re.M)
_FENCE = re.compile(r"^(```|~~~)[^\n]*\n.*?(?:^\1[ \t]*$|\Z)", re.M | re.S)
_PARAGRAPH = re.compile(r"\S(?:.*\S)?(?:\n[ \t]*\S.*)*")
_END = re.compile(r"(?:[.!?…]['\")\]»”’]*(?=\s)|[。！？｡]['\")\]」』”’]*|\n)\s*")


def _sections(text: str) -> Iterator[_Section]:
    """The text from each heading to the next; a heading with nothing under it goes with what follows. Those in fenced blocks are none."""
    path: dict[int, str] = {}
    above: tuple[str, ...] = ()
    start = ended = 0
    for match in _headings(text):
        if text[ended : match.start()].strip():
            yield _Section(*_stripped(text, start, match.start()), above, tuple(path.values()))
            start, above = match.start(), ()
        level = len(match[1]) if match[1] else 1 if match[4].startswith("=") else 2
        over = {depth: words for depth, words in path.items() if depth < level}
        above = above if start < match.start() and text[start : match.start()].strip() else tuple(over.values())
        path = over | {level: (match[2] or match[3]).rstrip(" \t#")}
        ended = match.end()
    if text[start:].strip():
        yield _Section(*_stripped(text, start, len(text)), above, tuple(path.values()))


def _headings(text: str) -> Iterator[re.Match[str]]:
    fences = deque(match.span() for match in _FENCE.finditer(text))
    for match in _HEADING.finditer(text):
        while fences and fences[0][1] <= match.start():
            fences.popleft()
        if not fences or match.start() < fences[0][0]:
            yield match


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Sentences, and lines of lists and tables."""
    begin = start
    for match in _END.finditer(text, start, end):
        stop = match.start() + len(match.group().rstrip())
        if begin < stop:
            yield begin, stop
        begin = match.end()
    if begin < end:
        yield begin, end


def _middle(text: str, start: int, end: int) -> int:
    """The space that is nearest to the middle, else the middle."""
    half = (start + end) // 2
    before, after = max(text.rfind(space, start + 1, half) for space in " \t\n"), [text.find(space, half, end - 1) for space in " \t\n"]
    next_ = min((place for place in after if place >= 0), default=-1)
    if before < 0 and next_ < 0:
        return half
    return next_ if before < 0 or 0 <= next_ - half < half - before else before


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
