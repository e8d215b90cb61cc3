"""The one renderer: messages → token ids and loss mask, by the model's own chat template. Training, evaluation and serving all call it,
so they cannot differ. Knows nothing about weights; needs no torch.

The mask covers what the assistant says and the end-of-turn token that closes it, and nothing else: everything that the model must
produce by itself at inference, and only that.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError, Fault, NotFound
from tunesmith.core.json_text import json_value
from tunesmith.core.load import need
from tunesmith.core.template import FALLBACK, ChatTemplate
from tunesmith.core.types import Document, Example, Function, Labelled, Message, Preference, Prompt, ToolCall

_REMEDY_ANSWER = "take the white space off the beginning of the answer"
_REMEDY_TEMPLATE = "end the chat template's generation prompt without what merges with the answer's first letters (a space, for one)"
_SPACE = "\u2581"  # how tokenizers of the SentencePiece family write a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# What begins a call of a tool in an answer, as `Renderer.parse` reads it.
CALL_MARKS = ("<tool_call>",)
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row as a model sees it: `ids` int32 [n], `mask` uint8 [n] (1 = this token is trained), `cut` tokens lost to `max_length`."""

    example_id: str
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    cut: int = 0

    @property
    def trained(self) -> int:
        """How many tokens carry loss."""
        return int(self.mask.sum())

    def limited(self, max_length: int) -> Rendered:
        """The row cut on the right to `max_length` tokens; `cut` says how many were lost. The caller writes that to the ledger."""
        lost = len(self.ids) - max_length
        return self if lost <= 0 else replace(self, ids=self.ids[:max_length], mask=self.mask[:max_length], cut=lost)


class Renderer:
    """A tokenizer and a chat template that belong together. Make one with `Renderer.load(folder)`."""

    def __init__(self, tokenizer_json: dict[str, Any], template: str, tokens: dict[str, str]) -> None:
        tokenizers = need("tokenizers", extra="local")
        self.template = ChatTemplate(template, tokens)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_exact_offsets(tokenizer_json)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {token["id"] for token in tokenizer_json.get("added_tokens", ())}
        self._alone = lru_cache(maxsize=64)(self.encode)
        self._special = [token["content"] for token in tokenizer_json.get("added_tokens", ()) if token.get("special")]
        identity = json.dumps([tokenizer_json, template, tokens], sort_keys=True, ensure_ascii=False)
        self.digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self.end_of_turn = self._find_end_of_turn(tokens)
        self.end_of_text = tokens.get("eos_token") or self.end_of_turn
        self.stop_ids = frozenset(self._ids_of(self.end_of_turn, tokens.get("eos_token", "")))

    @classmethod
    def load(cls, folder: Path | str) -> Renderer:
        """The renderer of a model folder (`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` where there is one).

        A folder without a template gets `template.FALLBACK`. Raises NotFound when there is no fast tokenizer.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise NotFound(
                "no tokenizer.json", where=str(folder), allowed="a folder that a fast tokenizer was saved to", remedy="tunesmith models"
            )
        config_file = folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text("utf-8")) if config_file.is_file() else {}
        template_file = folder / "chat_template.jinja"
        template: str | None = template_file.read_text("utf-8") if template_file.is_file() else _configured_template(config)
        tokens = {name: _token_text(config[name]) for name in ("bos_token", "eos_token", "pad_token", "unk_token") if config.get(name)}
        tokens = {"bos_token": "", "eos_token": "", **tokens}
        return cls(json.loads((folder / "tokenizer.json").read_text("utf-8")), template or FALLBACK, tokens)

    def _ids_of(self, *tokens: str) -> Iterable[int]:
        return (number for number in (self._tokenizer.token_to_id(token) for token in tokens if token) if number is not None)

    def _find_end_of_turn(self, tokens: dict[str, str]) -> str:
        """The special token that the template puts after an assistant's words: asked of the template itself."""
        said = self.template.render([Message(role="user", content="⟨u⟩"), Message(role="assistant", content="⟨a⟩")])
        tail = said.rpartition("⟨a⟩")[2]
        found = [(tail.find(token), token) for token in {*self._special, tokens["eos_token"]} if token and token in tail]
        if not found:
            raise DataError(
                "the chat template closes the assistant's turn with no special token, so a model trained on it would never stop",
                where="chat template",
                allowed="a template that ends each assistant turn with a special token or the tokenizer's eos_token",
                remedy="add the end-of-turn token to the template",
            )
        return str(min(found)[1])

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; special tokens are recognised, none is added. Other threads go on meanwhile: of a batch, the tokenizer
        lets Python's lock go."""
        return list(self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids)

    @cached_property
    def longest_token(self) -> int:
        """How many characters one token stands for at most, so that a text's length says how many tokens it has at least."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def ids(self, tokens: Sequence[str]) -> list[int | None]:
        """The id of each token, None for what is none."""
        return [self._tokenizer.token_to_id(token) for token in tokens]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of the ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id as the text it stands for, special tokens included: for showing a row."""
        return [str(self._tokenizer.decode([number], skip_special_tokens=False)) for number in ids]

    def word(self, number: int) -> str:
        """One id as it stands in a text: with the space before it, where the tokenizer writes spaces as a mark of their own."""
        token = str(self._tokenizer.id_to_token(number))
        if number in self._added:
            return token
        return token.replace(_SPACE, " ") if token.startswith(_SPACE) else self.pieces([number])[0]

    def bytes_of(self, number: int) -> list[int] | None:
        """The bytes of one id, also where it is a part of a character; None where the tokenizer does not tell."""
        word = self.word(number)
        if "\ufffd" not in word:
            return list(word.encode())
        token = str(self._tokenizer.id_to_token(number))
        if fallback := _BYTE.fullmatch(token):
            return [int(fallback[1], 16)]
        table = _byte_letters()
        return [table[letter] for letter in token] if all(letter in table for letter in token) else None

    def prompt(self, prompt: Prompt) -> list[int]:
        """The ids that a model is given before it answers: the conversation and the header of its next turn."""
        return self.encode(self.text(prompt))

    def text(self, prompt: Prompt) -> str:
        """The same as text: what the template writes before the model answers."""
        return self.template.render(prompt.messages, prompt.tools, generation=True)

    def example(self, example: Example) -> Rendered:
        """One row as ids and mask. Raises DataError when the template refuses the conversation."""
        return self.examples([example])[0]

    def examples(self, examples: Sequence[Example]) -> list[Rendered]:
        """Many rows, tokenized in one parallel call. Raises DataError for a row whose tokens are not those that serving would send."""
        found = [self._spans(example) for example in examples]
        texts = [text for text, _ in found]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rows, merged = [], []
        for example, encoding, (text, spans) in zip(examples, encodings, found, strict=True):
            ids, offsets, starts = encoding.ids, encoding.offsets, [start for start, _ in spans]
            if (start := next((at for at in starts if self._merges(text, ids, offsets, at)), None)) is not None:
                merged.append((example, text, start))
            rows.append(_masked(example.id, ids, np.array(offsets, np.int64).reshape(-1, 2), spans))
        if merged:
            raise _merged_tokens(merged, len(rows))
        return rows

    def pair(self, preference: Preference) -> tuple[Rendered, Rendered]:
        """A preference row as (preferred, non-preferred); only the answer carries loss."""
        return self.pairs([preference])[0]

    def pairs(self, rows: Sequence[Preference]) -> list[tuple[Rendered, Rendered]]:
        """Preference rows, each as (preferred, non-preferred); only the answers carry loss."""
        both = self.examples([_answered(row, answer) for row in rows for answer in (row.preferred, row.non_preferred)])
        return list(zip(both[::2], both[1::2], strict=True))

    def labelled(self, rows: Sequence[Labelled]) -> list[Rendered]:
        """Labelled rows, wanted or not; only the answer carries loss."""
        return self.examples([_answered(row, row.answer) for row in rows])

    def documents(self, rows: Sequence[Document]) -> list[Rendered]:
        """Documents as they are, without any chat template: begun as the tokenizer begins any text, closed by the end-of-text token; every
        token is trained."""
        encodings = self._tokenizer.encode_batch([row.text for row in rows], add_special_tokens=True)
        end = list(self._ids_of(self.end_of_text))
        ended = [ids if ids[-len(end) :] == end else [*ids, *end] for ids in (encoding.ids for encoding in encodings)]
        return [Rendered(row.id, np.array(ids, np.int32), np.ones(len(ids), np.uint8)) for row, ids in zip(rows, ended, strict=True)]

    def _spans(self, example: Example) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation as text and the character spans that are trained."""
        messages, tools = example.messages, example.tools
        full = self.template.render(messages, tools)
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message.role != "assistant" or message.weight == 0:
                continue
            start = self._start(full, example, i)
            if start is None:
                raise DataError(
                    f"the chat template rewrites earlier turns, so turn {i + 1} cannot be told from its context",
                    where=f"row {example.id}",
                    remedy=f"give turn {i + 1} weight 0, or split the row so that each trained turn is the last one",
                )
            until = self.template.render(messages[: i + 1], tools)
            whole = full.startswith(until)
            closing = full.rfind(self.end_of_turn, start, len(until)) if whole else full.find(self.end_of_turn, start)
            end = closing + len(self.end_of_turn) if closing >= 0 else len(until)
            spans.append((start, end))
        return full, spans

    def _merges(self, text: str, ids: list[int], offsets: list[tuple[int, int]], start: int) -> bool:
        """Whether the prompt before an answer is cut into other tokens than without the answer, as serving sends it.

        Tokenizers cut a text at added tokens first, so only what stands after the last of them is compared.
        """
        behind = bisect_left(offsets, (start, 0))
        first = next((k for k in reversed(range(behind)) if ids[k] in self._added), 0)
        alone = self._alone(text[offsets[first][0] : start])
        return ids[first : first + len(alone)] != alone

    def _start(self, full: str, example: Example, i: int) -> int | None:
        """Where the words of turn `i` begin: at the end of the prompt that inference would send, and where the template writes earlier
        turns differently (or the assistant speaks first), where a mark put in place of the words would stand."""
        before, mark = example.messages[:i], "⟨assistant’s words⟩"
        prompt = self.template.render(before, example.tools, generation=True) if before else None
        if prompt is not None and full.startswith(prompt):
            return len(prompt)
        marked = msgspec.structs.replace(example.messages[i], content=mark)
        head, found, _ = self.template.render((*before, marked, *example.messages[i + 1 :]), example.tools).partition(mark)
        return len(head) if found and full.startswith(head) else None

    def parse(self, text: str) -> Message:
        """What a model said, as an assistant message: tool calls in `<tool_call>{…}</tool_call>` are taken out of the words."""
        calls = []
        for number, found in enumerate(_TOOL_CALL.findall(text)):
            try:
                said = json_value(found)
                arguments = said.get("arguments", said.get("parameters", {}))
                words = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
                calls.append(ToolCall(id=f"call_{number}", function=Function(name=str(said["name"]), arguments=words)))
            except (json.JSONDecodeError, KeyError, AttributeError):
                return Message(role="assistant", content=text)
        if not calls:
            return Message(role="assistant", content=text)
        return Message(role="assistant", content=_TOOL_CALL.sub("", text).strip() or None, tool_calls=tuple(calls))


@cache
def _byte_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte (Radford et al. 2019): itself where it can be seen, else one after 255."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(seen)]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def _merged_tokens(rows: Sequence[tuple[Example, str, int]], of: int) -> DataError:
    """The error about rows whose prompt merges with the answer; each with its text and where the answer begins."""
    faults = [
        Fault(
            row.origin or f"row {row.id}",
            "merged_token",
            f"the prompt ends in {text[:start][-8:]!r}, the answer begins with {text[start:][:8]!r}",
        )
        for row, text, start in rows
    ]
    white = all(text[start : start + 1].isspace() for _, text, start in rows)
    return DataError(
        f"in {len(rows)} of {of} rows the end of the prompt merges with the answer into tokens that serving does not send",
        faults=faults,
        allowed="a prompt whose tokens are the same with and without an answer behind it",
        remedy=_REMEDY_ANSWER if white else _REMEDY_TEMPLATE,
    )


def _answered(row: Preference | Labelled, answer: Message) -> Example:
    """The row's prompt with one answer, which alone is trained."""
    prompt = tuple(replace_weight(message, 0) for message in row.messages)
    return Example(id=row.id, messages=(*prompt, answer), tools=row.tools, origin=row.origin)


def replace_weight(message: Message, weight: int) -> Message:
    """The message with that loss weight if it is the assistant's, else unchanged."""
    return msgspec.structs.replace(message, weight=weight) if message.role == "assistant" else message


def _masked(example_id: str, ids: list[int], offsets: npt.NDArray[np.int64], spans: list[tuple[int, int]]) -> Rendered:
    mask = np.zeros(len(ids), dtype=np.uint8)
    for start, end in spans:
        mask[(offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 0] < end)] = 1
    return Rendered(example_id, np.asarray(ids, dtype=np.int32), mask)


def _exact_offsets(node: Any) -> Any:
    """A tokenizer whose offsets keep white space: byte-level tokenizers trim it from offsets, never from ids."""
    if isinstance(node, dict):
        return {key: False if key == "trim_offsets" else _exact_offsets(value) for key, value in node.items()}
    return [_exact_offsets(value) for value in node] if isinstance(node, list) else node


def _configured_template(config: dict[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones: the default is the one to chat with
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
