"""The records that cross rooms; knows nothing about files, models or stores.

All are frozen msgspec structs: they decode typed from JSON and YAML, refuse unknown keys and encode canonically, so a digest of one
is a digest of its meaning.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal
from urllib.parse import quote

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every record: immutable, named fields only, unknown keys refused, defaults left out on disk."""


class Function(Record, frozen=True):
    """A called function: its name and its arguments as JSON text, as the OpenAI API has them."""

    name: str
    arguments: str


class ToolCall(Record, frozen=True):
    """One tool call of an assistant message."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class TextPart(Record, frozen=True):
    """A text part of a message whose content is a list."""

    text: str
    type: Literal["text"] = "text"


class Message(Record, frozen=True):
    """One turn. `weight` 0 takes an assistant message out of the loss; None means 1.

    `content` may be None only beside `tool_calls` or a `refusal`. `reasoning_content` is what an assistant thought before its words.
    """

    role: Role
    content: str | tuple[TextPart, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    weight: Literal[0, 1] | None = None

    @property
    def text(self) -> str:
        """The content as one string (parts joined; None and a refusal read as their words)."""
        if isinstance(self.content, tuple):
            return "".join(part.text for part in self.content)
        return self.content or self.refusal or ""


class Example(Record, frozen=True):
    """One row: a conversation, and what is known of it. `id` is the hash of its content (`example_id`)."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    parallel_tool_calls: bool | None = None
    reference: str | None = None
    group: str | None = None
    label: str | None = None
    meta: dict[str, Any] = {}
    origin: str = ""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the final assistant turn: what a model is asked at evaluation."""
        return self.messages[:-1] if self.messages and self.messages[-1].role == "assistant" else self.messages

    @property
    def answer(self) -> str:
        """The reference answer: `reference`, else the words of the final assistant turn, else empty."""
        if self.reference is not None:
            return self.reference
        last = self.messages[-1] if self.messages else None
        return last.text if last is not None and last.role == "assistant" else ""


class Preference(Record, frozen=True):
    """A pair for preference training: the prompt's messages, the answer that is preferred, the one that is not."""

    id: str
    messages: tuple[Message, ...]
    preferred: Message
    non_preferred: Message
    tools: tuple[dict[str, Any], ...] = ()
    group: str | None = None
    meta: dict[str, Any] = {}
    origin: str = ""


class Labelled(Record, frozen=True):
    """A row for training by approval (KTO): the prompt's messages, one answer to them, and whether that answer is wanted."""

    id: str
    messages: tuple[Message, ...]
    answer: Message
    desirable: bool
    tools: tuple[dict[str, Any], ...] = ()
    group: str | None = None
    meta: dict[str, Any] = {}
    origin: str = ""


class Document(Record, frozen=True):
    """Running text for continued pre-training: every token of it is trained, and no chat template is put around it."""

    id: str
    text: str
    group: str | None = None
    meta: dict[str, Any] = {}
    origin: str = ""


class Prompt(Record, frozen=True):
    """What a model is asked: messages, the tools it may call, and a JSON Schema that its answer must satisfy (None: free text)."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    response_schema: dict[str, Any] | None = None


class Sampling(Record, frozen=True):
    """How an answer is drawn. `temperature` 0 is greedy; `max_tokens` counts new tokens; `top_logprobs` None: no log-probabilities."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None


def place_of(source: str, page: int | None = None, part: str = "") -> str:
    """A place of a document for people."""
    return source + (f", page {page}" if page is not None else "") + (f", {part}" if part else "")


def address_of(source: str, page: int | None = None, part: str = "") -> str:
    """A place of a document as a relative URL; `#page=3` opens a PDF there (RFC 8118)."""
    fragment = "&".join([*([f"page={page}"] if page is not None else []), *([quote(part)] if part else [])])
    return quote(source) + (f"#{fragment}" if fragment else "")


class PassageRef(Record, frozen=True):
    """A passage that stood in a prompt under a number (from 1): its id, and where it stands in which document; `score` is how well it was
    found to fit."""

    number: int
    id: str
    source: str
    start: int
    end: int
    score: float
    page: int | None = None
    part: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for people: `manual.pdf, page 3`."""
        return place_of(self.source, self.page, self.part)

    @property
    def address(self) -> str:
        """Where it stands, as a relative URL: `manual.pdf#page=3`."""
        return address_of(self.source, self.page, self.part)


class Sources(Record, frozen=True):
    """What was looked up for an answer: the digest of the index, the passages in the prompt, and how many more had no room there."""

    index: str
    passages: tuple[PassageRef, ...] = ()
    dropped: int = 0


class Answer(Record, frozen=True):
    """What a model said; `text` is the answer without the thoughts before it, which are `reasoning_content`.

    Times in seconds: until the first token and until the last; `logprobs` in nats, one a token; `end_logprob` is that of the token which
    ended it and is no word of it. `sources` are what was looked up for it; None where nothing was.
    """

    text: str
    reasoning_content: str = ""
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter", "error"] = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    total_s: float | None = None
    logprobs: tuple[dict[str, Any], ...] = ()
    end_logprob: dict[str, Any] | None = None
    sources: Sources | None = None


class Score(Record, frozen=True):
    """One example under one metric. `counts` are the sufficient statistics of a pooled metric (true positives, false positives,
    false negatives); `value` None means that the metric could not be computed (a judge that failed to parse): missing, never 0."""

    example_id: str
    metric: str
    value: float | None
    counts: tuple[float, ...] | None = None
    detail: str = ""


CLIENT_LEFT = 499  # nginx's word for a client that left; it is logged, never sent


class Interaction(Record, frozen=True):
    """One answered request: what was asked and answered, by which variant of which deployment, how long, how many tokens, at what price.

    `deployment` is the version of the alias's deployment and `model_digest` names the weights that answered, so that a row leads back to
    what made it. `endpoint` is what was called (`chat.completions`, `responses`, `completions`, `embeddings`). `user_key` is what the
    client calls its user, `propensity` the probability with which the `strategy` chose this variant (None: somebody asked for it by its
    name), `sources` what was looked up for the answer. `fallback` is the variant that answered in this one's place: the request stays this
    one's, the weights and the price are those of who answered. Times in seconds.
    """

    id: str
    created: float
    alias: str
    variant: str
    messages: tuple[Message, ...]
    answer: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
    status: int = 200
    error: str = ""
    conversation: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    project: str = ""
    endpoint: str = "chat.completions"
    deployment: int | None = None
    model_digest: str = ""
    user_key: str | None = None
    cost_usd: float | None = None
    experiment: str | None = None
    propensity: float | None = None
    sources: Sources | None = None
    strategy: str = ""
    fallback: str | None = None


class ShadowAnswer(Record, frozen=True):
    """What a variant answered to a copy of a request, whose `interaction` it is; no client has seen it. `skipped` says why there was no
    copy, `error` why it was not answered. Times in seconds."""

    interaction: str
    created: float
    project: str
    alias: str
    deployment: int
    variant: str
    model_digest: str = ""
    skipped: str = ""
    error: str = ""
    answer: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_s: float = 0.0


class Feedback(Record, frozen=True):
    """What somebody said of an answered request, or what came of it.

    `value`: of thumbs 1 (up) or 0, of a score a number, of an outcome a number or a word, of a correction the answer that would have been
    right. `name` says what was rated, `by` who said it, `source` by which way it came. `created` is when it was said, `received` when it
    came here. Where the log has no such request (it was answered elsewhere), `messages`, `answer` and `alias` are what was asked, what was
    answered, and by which model.
    """

    id: str
    interaction: str
    created: float
    kind: Literal["thumbs", "score", "correction", "outcome"]
    value: float | str
    name: str = ""
    by: str = ""
    comment: str = ""
    source: str = "api"
    project: str = "default"
    received: float = 0.0
    messages: tuple[Message, ...] = ()
    answer: str = ""
    alias: str = ""


Fate = Literal["kept", "mended", "dropped", "truncated", "duplicate_of"]


class LedgerLine(Record, frozen=True):
    """What happened to one input row, by which rule and why. `other` is the row that a duplicate repeats."""

    row: str
    origin: str
    fate: Fate
    rule: str = ""
    reason: str = ""
    other: str | None = None


_canonical = msgspec.json.Encoder(order="deterministic")


def canonical(value: object) -> bytes:
    """Canonical JSON bytes of a record: sorted keys, defaults left out, no white space."""
    return _canonical.encode(value)


def digest(*values: object, size: int = 16) -> str:
    """Hex digest (BLAKE2b, `size` bytes) of the canonical JSON of the values, in order."""
    h = hashlib.blake2b(digest_size=size)
    for value in values:
        data = canonical(value)
        h.update(len(data).to_bytes(8, "little"))
        h.update(data)
    return h.hexdigest()


def example_id(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...] = (), reference: str | None = None) -> str:
    """The content hash that identifies a row: 24 hex characters over messages, tools and reference."""
    return digest(messages, tools, reference, size=12)
