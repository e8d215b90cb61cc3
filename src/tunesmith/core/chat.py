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
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from tunesmith.core.errors import DataError, Fault, NotFound
from tunesmith.core.load import need
from tunesmith.core.reading import Reader
from tunesmith.core.template import FALLBACK, PROBE_CALL, PROBE_TOOL, ChatTemplate
from tunesmith.core.thinking import open_tail
from tunesmith.core.turns import Turn, Turns
from tunesmith.core.types import Document, Example, Function, Labelled, Message, Preference, Prompt, ToolCall

_REMEDY_ANSWER = "take the white space off the beginning of the answer"
_REMEDY_TEMPLATE = "end the chat template's generation prompt without what merges with the answer's first letters (a space, for one)"
_SPACE = "\u2581"  # how tokenizers of the SentencePiece family write a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


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


class _Group(NamedTuple):
    """A text, the turns that are trained in it and their places in the conversation."""

    text: str
    turns: list[Turn]
    places: list[int]


class Renderer:
    """A tokenizer and a chat template that belong together. Make one with `Renderer.load(folder)`."""

    def __init__(self, tokenizer_json: dict[str, Any], template: str, tokens: dict[str, str], ends: Sequence[int] = ()) -> None:
        """`ends` are the ids that the model's generation config ends an answer with."""
        tokenizers = need("tokenizers", extra="local")
        self.template = ChatTemplate(template, tokens)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_exact_offsets(tokenizer_json)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._added = {token["id"] for token in tokenizer_json.get("added_tokens", ())}
        self._alone = lru_cache(maxsize=64)(self.encode)
        self._special = [token["content"] for token in tokenizer_json.get("added_tokens", ()) if token.get("special")]
        identity = json.dumps([tokenizer_json, template, tokens, *([sorted(ends)] if ends else [])], sort_keys=True, ensure_ascii=False)
        self.digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        known = [token for token in (self._tokenizer.id_to_token(number) for number in ends) if token]
        stops = self._find_stops([*known, *([tokens["eos_token"]] if tokens.get("eos_token") else [])], bool(known))
        self.end_of_turn = stops[0]
        self.end_of_text = tokens.get("eos_token") or self.end_of_turn
        self.stop_ids = frozenset(self._ids_of(*stops))
        self.turns = Turns(self.template, stops, self.end_of_turn)

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
        return cls(json.loads((folder / "tokenizer.json").read_text("utf-8")), template or FALLBACK, tokens, _generation_ends(folder))

    def _ids_of(self, *tokens: str) -> Iterable[int]:
        return (number for number in (self._tokenizer.token_to_id(token) for token in tokens if token) if number is not None)

    def _find_stops(self, known: list[str], configured: bool) -> list[str]:
        """The tokens that end an answer, the one behind an assistant's words first: those of the generation config and the end of text,
        and what the template itself puts behind words and behind calls, where it puts none of them."""
        ask = Message(role="user", content="⟨u⟩")
        words = self._probed([ask, Message(role="assistant", content="⟨a⟩")]).rpartition("⟨a⟩")[2]
        own = [token for token in self._in_order(words) if token not in known]
        own = [token for token in own if words.rstrip().endswith(token)] or own
        stops = [*[token for token in self._in_order(words, known) if configured], *own[:1], *known]
        if not configured and not self._in_order(words, [*self._special, *known]):
            raise DataError(
                "the chat template closes the assistant's turn with no special token, so a model trained on it would never stop",
                where="chat template",
                allowed="a template that ends each assistant turn with a special token, or a generation_config.json with an eos_token_id",
                remedy="add the end-of-turn token to the template",
            )
        if configured and stops[0] in known:
            stops = [token for token in stops if token in known]
        stops += self._behind_call(ask, stops)
        return list(dict.fromkeys(stops))

    def _probed(self, messages: Sequence[Message]) -> str:
        """What the template makes of the messages; some are for tools alone."""
        try:
            return self.template.render(messages)
        except DataError as error:
            try:
                return self.template.render(messages, [PROBE_TOOL])
            except DataError:
                raise error from None

    def _behind_call(self, ask: Message, stops: Sequence[str]) -> list[str]:
        """The special token with which the template closes a call of a tool, where it is none of `stops`."""
        if self.template.call_form is None:
            return []
        try:
            text = self.template.render([ask, Message(role="assistant", tool_calls=(PROBE_CALL,))], [PROBE_TOOL])
        except DataError:
            return []
        tail = text.rpartition("find_town")[2].rstrip()
        last = next((token for token in sorted(self._special, key=len, reverse=True) if tail.endswith(token)), None)
        return [last] if last and not any(stop in tail for stop in stops) else []

    def _in_order(self, text: str, tokens: Iterable[str] = ()) -> list[str]:
        """The special tokens (or `tokens`) that stand in the text, in the order of their first places."""
        return [token for at, token in sorted((text.find(token), token) for token in {*(tokens or self._special)} if token) if at >= 0]

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
        rendered_texts = self._all_spans(examples)
        texts = [text for text, _ in rendered_texts]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        rows, merged = [], []
        for example, encoding, (text, spans) in zip(examples, encodings, rendered_texts, strict=True):
            ids, offsets, starts = encoding.ids, encoding.offsets, [start for start, _ in spans]
            if (start := next((at for at in starts if self._merges(text, ids, offsets, at)), None)) is not None:
                merged.append((example, text, start))
            rows.append(_masked(example.id, ids, np.array(offsets, np.int64).reshape(-1, 2), spans))
        if merged:
            raise _merged_tokens(merged, len(rows))
        return rows

    def answered(self, text: str, prompt: Prompt) -> Message:
        """What a model said to a prompt (see `parse`): calls are looked for when the prompt has tools."""
        inside = open_tail(self.template.render(prompt.messages, prompt.tools, generation=True)) is not None
        return self.parse(text, prompt.tools, inside=inside)

    def _all_spans(self, examples: Sequence[Example]) -> list[tuple[str, list[tuple[int, int]]]]:
        """The text and the trained spans of each row; one error names every row that cannot be rendered."""
        rendered, refused = [], []
        for example in examples:
            try:
                rendered.append(self._spans(example))
            except DataError as error:
                refused.append(error)
        if not refused:
            return rendered
        first = refused[0]
        if len(refused) == 1:
            raise first
        faults = [Fault(error.where, "not_rendered", error.what) for error in refused]
        what = f"{len(refused)} of {len(examples)} rows cannot be rendered: {first.what}"
        raise DataError(what, faults=faults, allowed=first.allowed, remedy=first.remedy) from first

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

    def _groups(self, example: Example) -> list[_Group]:
        """The row as the texts that hold its trained turns as serving asks for them: one, or several where the template writes a turn
        otherwise once others follow."""
        messages, tools = example.messages, example.tools
        places = [i for i, message in enumerate(messages) if message.role == "assistant" and message.weight != 0]
        turns = {i: self._turn(example, i) for i in places}
        full = self.template.render(messages, tools)
        if all(full.startswith(turn.text) for turn in turns.values()):
            return [_Group(full, [turns[i] for i in places], places)]
        groups = []
        while places:
            text = turns[places[-1]].text
            held = [i for i in places if text.startswith(turns[i].text)]
            groups.append(_Group(text, [turns[i] for i in held], held))
            places = [i for i in places if i not in held]
        return groups[::-1]

    def _groups_or_none(self, example: Example) -> list[_Group]:
        """None for a row that cannot be rendered at all: rendering it says why, beside all others."""
        try:
            return self._groups(example)
        except DataError:
            return []

    def _turn(self, example: Example, i: int) -> Turn:
        try:
            return self.turns.turn(example.messages, example.tools, i)
        except DataError as error:
            where = f"{example.origin or f'row {example.id}'}, turn {i + 1}"
            raise DataError(error.what, where=where, allowed=error.allowed, remedy=error.remedy) from error

    def apart(self, examples: Sequence[Example]) -> tuple[list[Example], str]:
        """The rows with each turn trained as serving asks for it, and what is to be said when that made more rows of them.

        Some templates write a turn otherwise once others follow: without its thoughts, with another end. What such a turn was asked with
        and must then be is a row of its own, in which the turns before it are only read.
        """
        rows: list[Example] = []
        split = 0
        for example in examples:
            several = sum(message.role == "assistant" and message.weight != 0 for message in example.messages) > 1
            groups = self._groups_or_none(example) if several else []
            split += len(groups) > 1
            rows += [_part_of(example, group.places) for group in groups] if len(groups) > 1 else [example]
        what = f"{split} of {len(examples)} conversations became {len(rows) - len(examples) + split} rows"
        why = "the chat template writes a turn otherwise once others follow (its thoughts, its end), so each is trained as it is asked for"
        return rows, f"{what}: {why}" if split else ""

    def _spans(self, example: Example) -> tuple[str, list[tuple[int, int]]]:
        """The whole conversation as text and the character spans that are trained."""
        groups = self._groups(example)
        if len(groups) > 1:
            last = groups[-1].places[-1]
            inside = next(i for group in groups for i in group.places if i != last)
            raise DataError(
                f"the chat template rewrites earlier turns, so turn {inside + 1} stands otherwise in the row than serving asks for it",
                where=example.origin or f"row {example.id}",
                remedy=f"give turn {inside + 1} weight 0, or split the row so that each trained turn is the last one",
            )
        if not groups:
            return self.template.render(example.messages, example.tools), []
        return groups[0].text, [(len(turn.prompt), len(turn.text)) for turn in groups[0].turns]

    def _merges(self, text: str, ids: list[int], offsets: list[tuple[int, int]], start: int) -> bool:
        """Whether the prompt before an answer is cut into other tokens than without the answer, as serving sends it.

        Tokenizers cut a text at added tokens first, so only what stands after the last of them is compared.
        """
        behind = bisect_left(offsets, (start, 0))
        first = next((k for k in reversed(range(behind)) if ids[k] in self._added), 0)
        alone = self._alone(text[offsets[first][0] : start])
        return ids[first : first + len(alone)] != alone

    @cached_property
    def reader(self) -> Reader:
        """Reads answers back by how the template writes them."""
        return Reader(self.turns, self._special)

    def raw(self, ids: Sequence[int]) -> str:
        """The text of the ids with its special tokens, as `parse` takes it."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def parse(self, text: str, tools: Sequence[dict[str, Any]] | None = None, *, inside: bool = False) -> Message:
        """What a model said, as an assistant message: thoughts apart, calls of `tools` (None: of any) taken out of the words. `inside`: the
        prompt had begun the thoughts."""
        answer = self.reader.read(text, tools, inside=inside)
        calls = tuple(
            ToolCall(id=f"call_{i}", function=Function(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False)))
            for i, call in enumerate(answer.calls)
        )
        words = answer.words if answer.words or not calls else None
        return Message(role="assistant", content=words, tool_calls=calls, reasoning_content=answer.reasoning or None)


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


def _part_of(example: Example, places: Sequence[int]) -> Example:
    """The conversation up to the last of these turns, which alone are trained."""
    turns = (m if i in places else replace_weight(m, 0) for i, m in enumerate(example.messages[: places[-1] + 1]))
    return msgspec.structs.replace(example, messages=tuple(turns))


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


def _generation_ends(folder: Path) -> list[int]:
    """The ids that the generation config ends an answer with."""
    file = folder / "generation_config.json"
    ends = json.loads(file.read_text("utf-8")).get("eos_token_id") if file.is_file() else None
    return [] if ends is None else [int(end) for end in ends] if isinstance(ends, list) else [int(ends)]


def _configured_template(config: dict[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones: the default is the one to chat with
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _token_text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
