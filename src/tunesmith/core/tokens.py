"""How many tokens texts and conversations have, fast: by a model's own tokenizer or by OpenAI's, offline; knows nothing about prices.

The fast engine (`fastokens`) is believed only after it gave the same ids as `tokenizers` on a sample of the caller's own texts and on
texts that are known to be hard; otherwise `tokenizers` does the work, and `why` says so. Whole conversations are rendered by the model's
template. Those of one shape (the same roles, plain texts) differ only in their texts, so the template is asked once a shape and the texts
are put in, which is also checked on a sample and never done where a text could change what the template writes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import NotFound, UsageError, nearest
from tunesmith.core.load import need
from tunesmith.core.template import ChatTemplate
from tunesmith.core.types import Example, Message

Ints = npt.NDArray[np.int64]

SAMPLE_TEXTS, SAMPLE_CHARS, BATCH = 256, 200_000, 20_000
HARD = (
    "", " ", "  a  b \t\n\n c", "don't I'LL we've", "3.14159 1234567 ١٢٣", "naïve Ünïcödé — “quotes” …", "日本語のテキスト 한국어 नमस्ते",
    "👩‍👩‍👧‍👦🏽 🇩🇪", "a\u0301e\u0308", "<|endoftext|> <|im_start|>user\n</s>[INST]", "def f(x):\n    return {'a': [1, 2]}\r\n",
    "\u200b\ufeff\x00\x07",
)  # fmt: skip


class Encoded(NamedTuple):
    """Token ids of many texts end to end (`ids` uint32); text i has `ids[starts[i]:starts[i + 1]]`."""

    ids: npt.NDArray[np.uint32]
    starts: Ints


class Tokens:
    """The tokenizer of one `tokenizer.json`. `engine` is what does the work, `why` says why it is not the fast one (empty: it is)."""

    def __init__(self, tokenizer_json: str, sample: Sequence[str] = ()) -> None:
        self._slow = need("tokenizers", extra="local").Tokenizer.from_str(tokenizer_json)
        self._slow.no_truncation()
        self._slow.no_padding()
        self._fast, self.why = self._checked(tokenizer_json, [*HARD, *spread(sample)])

    @classmethod
    def load(cls, folder: Path | str, sample: Sequence[str] = ()) -> Tokens:
        """The tokenizer of a model folder, its fast engine checked on `sample`. Raises NotFound when there is no tokenizer.json."""
        file = Path(folder) / "tokenizer.json"
        if not file.is_file():
            raise NotFound("no tokenizer.json", where=str(folder), allowed="a folder that a fast tokenizer was saved to")
        return cls(file.read_text("utf-8"), sample)

    @property
    def engine(self) -> str:
        """'fastokens' or 'tokenizers'."""
        return "fastokens" if self._fast is not None else "tokenizers"

    def _checked(self, tokenizer_json: str, texts: Sequence[str]) -> tuple[Any, str]:
        try:
            import fastokens
        except ModuleNotFoundError:
            return None, "fastokens is not installed: pip install 'tunesmith[local]'"
        try:
            plain = json.dumps({**json.loads(tokenizer_json), "truncation": None, "padding": None})
            fast = fastokens.Tokenizer.from_json_str(plain)
            quick = _flat(fast, texts)
        except (ValueError, RuntimeError, TypeError) as error:
            return None, f"fastokens cannot use this tokenizer: {error}"
        wanted = _encode_slowly(self._slow, texts)
        wrong = next((i for i in range(len(texts)) if not np.array_equal(_row(quick, i), _row(wanted, i))), None)
        return (fast, "") if wrong is None else (None, f"fastokens gives other ids than tokenizers, first for {texts[wrong][:40]!r}")

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of each text; special tokens are recognised, none is added."""
        if self._fast is None:
            return _encode_slowly(self._slow, texts)
        return _flat(self._fast, texts)

    def counts(self, texts: Sequence[str]) -> Ints:
        """How many tokens each text has: int64 (n). Memory does not grow with the number of tokens."""
        parts = [np.diff(self.encode(texts[i : i + BATCH]).starts) for i in range(0, len(texts), BATCH)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _flat(fast: Any, texts: Sequence[str]) -> Encoded:
    ids, starts = fast.encode_batch_flat(list(texts), add_special_tokens=False)
    return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(starts, np.uint64).astype(np.int64))


def _encode_slowly(tokenizer: Any, texts: Sequence[str]) -> Encoded:
    rows = [encoded.ids for encoded in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
    return Encoded(np.fromiter((number for row in rows for number in row), np.uint32, count=int(starts[-1])), starts)


def _row(encoded: Encoded, i: int) -> npt.NDArray[np.uint32]:
    return encoded.ids[encoded.starts[i] : encoded.starts[i + 1]]


def spread(texts: Sequence[str]) -> list[str]:
    """A sample that is taken evenly from all of `texts`: at most SAMPLE_TEXTS of them and about SAMPLE_CHARS characters."""
    step, total, sample = max(1, len(texts) // SAMPLE_TEXTS), 0, []
    for text in texts[::step]:
        sample.append(text)
        total += len(text)
        if total > SAMPLE_CHARS:
            break
    return sample


# --- whole conversations -----------------------------------------------------------------------------------------------------------------

_HOLE = "\u27e8%d\u27e9"  # ⟨0⟩: stands for the text of turn 0 while the template is asked
_CHECKED = 64


def rendered(template: ChatTemplate, rows: Sequence[Example]) -> list[str]:
    """Each row as the text that the template makes of it. Raises DataError when the template refuses a conversation."""
    shapes: dict[tuple[str, ...], list[int]] = defaultdict(list)
    texts: list[str] = [""] * len(rows)
    for i, row in enumerate(rows):
        shape = _shape(row)
        if shape is None:
            texts[i] = template.render(row.messages, row.tools)
        else:
            shapes[shape].append(i)
    for shape, members in shapes.items():
        parts = _skeleton(template, shape) if len(members) > 4 else None
        if parts is not None and not _agrees(template, parts, [rows[i] for i in _sampled(members)]):
            parts = None
        for i in members:
            texts[i] = template.render(rows[i].messages) if parts is None else _filled(parts, rows[i].messages)
    return texts


def _shape(row: Example) -> tuple[str, ...] | None:
    """The roles of a conversation of plain texts that no template has a reason to change; None for any other."""
    if row.tools:
        return None
    for turn in row.messages:
        text = turn.content
        if type(text) is not str or turn.tool_calls or turn.name or turn.tool_call_id or turn.refusal:
            return None
        # templates trim white space, look for </think> and the like, and treat an empty text in their own way
        if not text or text[0].isspace() or text[-1].isspace() or "<" in text or "[" in text:
            return None
    return tuple(turn.role for turn in row.messages)


def _skeleton(template: ChatTemplate, shape: tuple[str, ...]) -> list[str] | None:
    """What the template writes before, between and after the texts; None when it moves, repeats or changes them."""
    turns = [Message(role=role, content=_HOLE % i) for i, role in enumerate(shape)]  # type: ignore[arg-type]
    rest, parts = template.render(turns), []
    for i in range(len(shape)):
        before, place, rest = rest.partition(_HOLE % i)
        if not place:
            return None
        parts.append(before)
    return [*parts, rest] if "\u27e8" not in rest else None


def _filled(parts: Sequence[str], turns: Sequence[Message]) -> str:
    pieces = [parts[0]]
    for turn, after in zip(turns, parts[1:], strict=True):
        pieces += (turn.content, after)  # type: ignore[arg-type]
    return "".join(pieces)


def _sampled(members: Sequence[int]) -> Sequence[int]:
    return members[:: max(1, len(members) // _CHECKED)]


def _agrees(template: ChatTemplate, parts: Sequence[str], rows: Sequence[Example]) -> bool:
    return all(template.render(row.messages) == _filled(parts, row.messages) for row in rows)


def row_texts(rows: Sequence[Example]) -> Iterator[str]:
    """The texts of all turns: what a sample for `Tokens` is taken from."""
    yield from (turn.text for row in rows for turn in row.messages)


# --- OpenAI's models ---------------------------------------------------------------------------------------------------------------------

_ENCODINGS = {"gpt-3.5": "cl100k_base", "gpt-4-": "cl100k_base", "gpt-35": "cl100k_base", "text-embedding-": "cl100k_base"}
_NEWER = ("gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "chatgpt-4o", "o1", "o3", "o4")
A_MESSAGE, A_REPLY = 3, 3  # tokens around each message, and at the end of the prompt (OpenAI cookbook, "How to count tokens")


def openai_encoding(model: str) -> str | None:
    """The encoding of an OpenAI model (`ft:` names included), or None when the name is not one of theirs."""
    name = model.removeprefix("ft:")
    if "/" in name:  # a folder, or a repository of the hub
        return None
    if name.startswith(_NEWER):
        return "o200k_base"
    return "cl100k_base" if name == "gpt-4" else next((value for start, value in _ENCODINGS.items() if name.startswith(start)), None)


class OpenAITokens:
    """The tokens of an OpenAI model, counted offline."""

    def __init__(self, model: str) -> None:
        encoding = openai_encoding(model)
        if encoding is None:
            raise UsageError(
                f"no encoding is known for '{model}'",
                allowed=f"names that start with {', '.join((*_NEWER, *_ENCODINGS))}",
                remedy=nearest(model, _NEWER),
            )
        self.model, self.engine, self.why = model, f"bpe-openai ({encoding})", ""
        self._encoding = need("bpe_openai", extra="openai").get_encoding(encoding)

    def counts(self, texts: Sequence[str]) -> Ints:
        """How many tokens each text has: int64 (n). Control tokens in a text count as the text that they are."""
        parts = [
            [len(encoded) for encoded in self._encoding.encode_ordinary_batch(list(texts[i : i + BATCH]), num_threads=1)]
            for i in range(0, len(texts), BATCH)
        ]
        return np.array([n for part in parts for n in part], dtype=np.int64)

    def rows(self, rows: Sequence[Example]) -> Ints:
        """Tokens of whole conversations, as billed: texts, roles, A_MESSAGE a message and A_REPLY; tool calls and tools as their JSON."""
        pieces = [_said(row) for row in rows]
        roles = sorted({turn.role for row in rows for turn in row.messages})
        role = dict(zip(roles, self.counts(roles).tolist(), strict=True))
        owner = np.repeat(np.arange(len(rows)), [len(texts) for texts in pieces])
        counts = self.counts([text for texts in pieces for text in texts])
        around = [A_REPLY + sum(A_MESSAGE + role[turn.role] for turn in row.messages) for row in rows]
        return np.bincount(owner, weights=counts, minlength=len(rows)).astype(np.int64) + np.array(around, dtype=np.int64)


def _said(row: Example) -> list[str]:
    parts = [part for turn in row.messages for part in (turn.text, turn.name) if part]
    parts += [part for turn in row.messages for call in turn.tool_calls for part in (call.function.name, call.function.arguments)]
    return [*parts, *(json.dumps(tool, ensure_ascii=False) for tool in row.tools)]
