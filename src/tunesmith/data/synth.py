"""New rows from a teacher, with their provenance: from seeds, documents, a tree of topics, by evolving, as preference pairs; knows nothing
about who the teacher is.

Each way makes requests; `make` asks them in batches, reads the JSON that comes back, and keeps what is well-formed, new (no near-duplicate
of a seed, of a row to avoid such as the test set, or of another new row) and good enough for the judge. What is not kept has a reason.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from tunesmith.core.errors import ConfigError, DataError, UsageError
from tunesmith.core.row_kinds import content_id
from tunesmith.core.rows import Row
from tunesmith.core.types import Answer, Example, Message, Preference, Prompt, Record, Sampling, digest, example_id
from tunesmith.data.dedup import best_matches, near_duplicates
from tunesmith.data.text import answer_of, comparison_text, question_of
from tunesmith.models.base import Model

Judge = Callable[[Example], float | None]

PAIR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
    "additionalProperties": False,
}
SPAN_SCHEMA: dict[str, Any] = {
    **PAIR_SCHEMA,
    "properties": {**PAIR_SCHEMA["properties"], "quote": {"type": "string"}},
    "required": ["question", "answer", "quote"],
}
LIST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"type": "string"}}},
    "required": ["items"],
    "additionalProperties": False,
}


class Synth(Record, frozen=True):
    """How rows are made. `near`: a new row this similar (Jaccard) to a seed, an avoided or another new row is not kept. `min_score`: what
    the judge must give. `usd_in`, `usd_out`: the teacher's price a million tokens, for the cost that is shown."""

    temperature: float = 0.8
    max_tokens: int = 1024
    near: float = 0.7
    min_score: float = 0.5
    batch: int = 16
    seed: int = 0
    usd_in: float = 0.0
    usd_out: float = 0.0


class TeacherRequest(NamedTuple):
    """One thing to ask: the prompt, how it came to be (a method's name), what is noted with the row, and the document to quote from."""

    prompt: Prompt
    method: str
    meta: dict[str, Any]
    document: str = ""


@dataclass
class Synthesis:
    """What came of it: rows, what was not kept (reason, the teacher's words), tokens and cost (US dollars)."""

    rows: list[Example] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


Progress = Callable[[int, int, float], None]


def make(
    requests: Sequence[TeacherRequest],
    teacher: Model,
    settings: Synth,
    *,
    seeds: Sequence[Row] = (),
    avoid: Sequence[Row] = (),
    judge: Judge | None = None,
    system: str | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Ask the teacher and keep what is good. `system` becomes the first turn of every new row. `progress(done, of, usd so far)` after
    each batch. Origins are `synthetic:TEACHER:PROMPT#n` with the digest of the prompt."""
    made = Synthesis()
    fresh: list[Example] = []
    for begin in range(0, len(requests), settings.batch):
        batch = requests[begin : begin + settings.batch]
        sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=settings.seed + begin)
        answers = asked(teacher, [request.prompt for request in batch], sampling)
        for number, (request, answer) in enumerate(zip(batch, answers, strict=True), start=begin):
            made.asked += 1
            made.prompt_tokens += answer.prompt_tokens
            made.completion_tokens += answer.completion_tokens
            row, reason = _read(answer.text, request, teacher.name, number, system)
            if row is None and answer.finish_reason in _UNFINISHED:
                reason = _UNFINISHED[answer.finish_reason]
            if row is None:
                made.refused.append((reason, answer.text))
            else:
                fresh.append(row)
        made.usd = (made.prompt_tokens * settings.usd_in + made.completion_tokens * settings.usd_out) / 1e6
        if progress is not None:
            progress(min(begin + settings.batch, len(requests)), len(requests), made.usd)
    fresh = _new(fresh, [*seeds, *avoid], settings.near, made)
    for row in fresh:
        score = judge(row) if judge is not None else 1.0
        if score is None or score < settings.min_score:
            made.refused.append((f"the judge gave {score}; at least {settings.min_score} is asked", row.answer))
        else:
            made.rows.append(row)
    return made


def estimate(requests: Sequence[TeacherRequest], settings: Synth, *, chars_per_token: float = 4.0) -> dict[str, float]:
    """Before asking: requests, tokens in (by characters), tokens out at most, and the most that it can cost in US dollars."""
    tokens_in = sum(len(turn.text) for request in requests for turn in request.prompt.messages) / chars_per_token
    tokens_out = float(len(requests) * settings.max_tokens)
    usd = (tokens_in * settings.usd_in + tokens_out * settings.usd_out) / 1e6
    return {"requests": float(len(requests)), "prompt_tokens": tokens_in, "completion_tokens": tokens_out, "usd": usd}


_UNFINISHED = {"length": "the answer was cut: give more --max_tokens", "error": "the teacher gave an error"}


def asked(teacher: Model, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
    """The teacher's answers; one that cannot be held to a JSON Schema is asked in the prompt's words alone."""
    try:
        return teacher.answer(prompts, sampling)
    except UsageError:
        if all(prompt.response_schema is None for prompt in prompts):
            raise
        return teacher.answer([msgspec.structs.replace(prompt, response_schema=None) for prompt in prompts], sampling)


def _read(text: str, request: TeacherRequest, teacher: str, number: int, system: str | None) -> tuple[Example | None, str]:
    pair = first_object(text)
    if pair is None:
        return None, "no JSON object in the answer"
    question, answer = pair.get("question"), pair.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str) or not question.strip() or not answer.strip():
        return None, "question or answer is missing or empty"
    meta = {"method": request.method, "teacher": teacher, **request.meta}
    if request.document:
        span = find_quote(request.document, pair.get("quote"))
        if span is None:
            return None, "the quote is not in the document"
        start = int(meta.pop("offset", 0))
        meta["span"] = [start + span[0], start + span[1]]
    turns = [Message(role="user", content=question.strip()), Message(role="assistant", content=answer.strip())]
    messages = tuple([Message(role="system", content=system), *turns] if system else turns)
    origin = f"synthetic:{teacher}:{digest(request.prompt, size=6)}#{number}"
    return Example(id=example_id(messages), messages=messages, meta=meta, origin=origin), ""


def first_object(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text that may hold other words around it, or None."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return None


def find_quote(document: str, quote: Any) -> tuple[int, int] | None:
    """Where a quote stands in a document (start, end), white space and case aside; None when it is no text or not there."""
    if not isinstance(quote, str) or not quote.split():
        return None
    match = re.search(r"\s+".join(re.escape(word) for word in quote.split()), document, re.IGNORECASE)
    return match.span() if match else None


def _new(fresh: list[Example], known: Sequence[Row], near: float, made: Synthesis) -> list[Example]:
    """Those that repeat neither a known row nor an earlier new one."""
    texts = [comparison_text(row) for row in fresh]
    index, value = best_matches(texts, [comparison_text(row) for row in known], near)
    repeats = set(near_duplicates(texts, near).right.tolist())
    new = []
    for i, row in enumerate(fresh):
        if index[i] >= 0:
            made.refused.append((f"Jaccard {value[i]:.2f} to {known[index[i]].origin or 'a known row'}", row.answer))
        elif i in repeats:
            made.refused.append(("it repeats another new row", row.answer))
        else:
            new.append(row)
    return new


# --- ways to ask -------------------------------------------------------------------------------------------------------------------


def _ask(task: str, schema: dict[str, Any]) -> Prompt:
    shape = ", ".join(f'"{key}": …' for key in schema["properties"])
    text = f"{task}\n\nAnswer with one JSON object and nothing else: {{{shape}}}"
    return Prompt(messages=(Message(role="user", content=text),), response_schema=schema)


def _shown(row: Row) -> str:
    return json.dumps({"question": question_of(row), "answer": answer_of(row)}, ensure_ascii=False)


def from_seeds(seeds: Sequence[Row], count: int, settings: Synth, *, shown: int = 3) -> list[TeacherRequest]:
    """`count` requests for a new row like a few that are shown, drawn anew each time. Raises ConfigError without seeds."""
    if not seeds:
        raise ConfigError("there are no seeds to make rows like", remedy="give at least one row, better twenty")
    draw = random.Random(settings.seed)
    requests = []
    for _ in range(count):
        chosen = draw.sample(list(seeds), min(shown, len(seeds)))
        lines = "\n".join(_shown(row) for row in chosen)
        task = f"Here are examples of a task:\n{lines}\n\nWrite one new example of the same task. Take another subject and other words."
        requests.append(TeacherRequest(_ask(task, PAIR_SCHEMA), "seeds", {"seeds": [row.id for row in chosen]}))
    return requests


def from_documents(documents: Iterable[tuple[str, str]], *, each: int = 3, chars: int = 4_000) -> list[TeacherRequest]:
    """Requests for questions that a part of a document answers, with the words that prove it. `documents`: (name, text)."""
    requests = []
    for name, text in documents:
        for start, part in _parts(text, chars):
            for number in range(each):
                task = (
                    f"Document:\n{part}\n\nWrite question {number + 1} of {each} that this document answers, its answer, "
                    "and the exact words of the document that prove the answer (quote)."
                )
                requests.append(TeacherRequest(_ask(task, SPAN_SCHEMA), "document", {"document": name, "offset": start}, part))
    return requests


def _parts(text: str, chars: int) -> Iterator[tuple[int, str]]:
    """Parts of at most `chars` characters, cut at the last line end or sentence end in the second half of each."""
    start = 0
    while start < len(text):
        end = min(start + chars, len(text))
        if end < len(text):
            cut = max(text.rfind("\n", start + chars // 2, end), text.rfind(". ", start + chars // 2, end))
            end = cut + 1 if cut > 0 else end
        if text[start:end].strip():
            yield start, text[start:end]
        start = end


def from_topics(root: str, teacher: Model, settings: Synth, *, breadth: int = 4, depth: int = 2, each: int = 2) -> list[TeacherRequest]:
    """Requests for rows at the leaves of a tree of topics that the teacher draws: `breadth` children a level, `each` rows a leaf."""
    paths: list[tuple[str, ...]] = [(root,)]
    for level in range(depth):
        prompts = [_ask(f"List {breadth} different parts of this topic: {' > '.join(path)}", LIST_SCHEMA) for path in paths]
        sampling = Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=settings.seed + level)
        answers = asked(teacher, prompts, sampling)
        grown = []
        for path, answer in zip(paths, answers, strict=True):
            items = (first_object(answer.text) or {}).get("items")
            names = [item.strip() for item in items if isinstance(item, str) and item.strip()] if isinstance(items, list) else []
            grown += [(*path, name) for name in dict.fromkeys(names[:breadth])]
        if not grown:
            raise DataError(
                f"the teacher '{teacher.name}' named no parts of '{root}'", remedy="try a larger teacher or name topics yourself"
            )
        paths = grown
    requests = []
    for path in paths:
        for number in range(each):
            task = (
                f"Topic: {' > '.join(path)}\n\nWrite question {number + 1} of {each} that someone would ask about it, and the best answer."
            )
            requests.append(TeacherRequest(_ask(task, PAIR_SCHEMA), "topics", {"topic": list(path)}))
    return requests


EVOLUTIONS = (
    "Make the question need one more step of reasoning.",
    "Add a condition or a limit that changes the answer.",
    "Replace what is general by something concrete.",
    "Ask for the same in a shorter and less tidy way, as people type.",
)


def evolve(rows: Sequence[Row], settings: Synth, *, ways: Sequence[str] = EVOLUTIONS) -> list[TeacherRequest]:
    """A harder or different version of each row (Xu et al. 2023, Evol-Instruct), the way drawn for each."""
    draw = random.Random(settings.seed)
    requests = []
    for row in rows:
        way = draw.choice(list(ways))
        task = f"Example of a task:\n{_shown(row)}\n\nRewrite it. {way} Give the right answer to the new question."
        requests.append(TeacherRequest(_ask(task, PAIR_SCHEMA), "evolve", {"seeds": [row.id], "way": way}))
    return requests


def preferences(rows: Sequence[Example], weak: Model, settings: Synth) -> tuple[list[Preference], list[tuple[str, str]]]:
    """Pairs of each row's own answer (preferred) and what a weaker model says (not preferred), and what was not kept, with the reason."""
    answers = weak.answer(
        [Prompt(messages=row.prompt, tools=row.tools) for row in rows],
        Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature, seed=settings.seed),
    )
    made, refused = [], []
    for row, answer in zip(rows, answers, strict=True):
        if not answer.text.strip() or answer.finish_reason == "error":
            refused.append((f"the weaker model said nothing ({answer.finish_reason})", answer.text))
        elif " ".join(answer.text.split()) == " ".join(row.answer.split()):
            refused.append(("the weaker model gave the same answer", answer.text))
        else:
            pair = Preference(
                id="",
                messages=row.prompt,
                preferred=Message(role="assistant", content=row.answer),
                non_preferred=Message(role="assistant", content=answer.text),
                tools=row.tools,
                group=row.group,
                meta={"method": "preferences", "weak": weak.name, "seeds": [row.id]},
                origin=f"synthetic:{weak.name}:{row.id}",
            )
            made.append(msgspec.structs.replace(pair, id=content_id(pair)))
    return made, refused
