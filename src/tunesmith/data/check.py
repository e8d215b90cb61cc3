"""Is this enough data, and the right data: numbers, and a list of things to do, most valuable first; knows nothing about models.

The thresholds are those of OpenAI's fine-tuning guide (10 rows at least; 50 to start; gains are seen by 50–100; each doubling brings a
similar gain; refusals in the data make over-refusal) and of plain statistics (what interval a test set of this size can give).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import ceil
from typing import Literal

import msgspec
import numpy as np

from tunesmith.core.counted import counted
from tunesmith.core.errors import ConfigError
from tunesmith.core.row_kinds import is_wanted, turns_of
from tunesmith.core.rows import Row
from tunesmith.core.stats import smallest_detectable_rates, wilson
from tunesmith.core.types import Document, Example, Labelled, Message, Preference, Record, ToolCall
from tunesmith.data.dedup import near_duplicates
from tunesmith.data.labels import label_errors
from tunesmith.data.pii import count, find_all
from tunesmith.data.row_rules import empty_answers, is_refusal
from tunesmith.data.set_rules import contradictions
from tunesmith.data.summary import summary
from tunesmith.data.text import answer_of, comparison_text, question_of, subject_of, texts_of
from tunesmith.data.topics import topics

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>", "[INST]", "</s>", "<|assistant|>")
NEAR = 0.8
LEVELS = ("stop", "fix", "consider", "fine")
OPENAI = "OpenAI, fine-tuning best practices"
GUIDANCE = (
    ("10 rows at least; 50 good ones to start; gains are usually clear by 50 to 100", OPENAI),
    ("each doubling of good rows brings a similar gain, so half against all tells what more would bring", OPENAI),
    ("when 60 % of the answers decline and 5 % should, a model declines too often: balance as in use", OPENAI),
    ("every row has the instructions and the system prompt that will be used when it is served", OPENAI),
    ("people who disagree about answers set the limit that a model can reach", OPENAI),
    ("95 % interval of a share: Wilson (1927); smallest difference: McNemar's test with power 0.8", "statistics.md"),
    ("near-duplicates: Jaccard ≥ 0.8 over pairs of adjacent words (Broder 1997)", "data.md"),
    ("wrong labels: confident learning (Northcutt, Jiang, Chuang 2021)", "data.md"),
)


class Advice(Record, frozen=True):
    """One finding: how pressing, a stable code, what was found, what to do, and up to five rows (their origins) to look at."""

    level: Literal["stop", "fix", "consider", "fine"]
    code: str
    found: str
    do: str = ""
    rows: tuple[str, ...] = ()


class Check(Record, frozen=True):
    """The result: advice, most pressing first; the data's numbers (`summary`); what a test of this size can show."""

    advice: tuple[Advice, ...]
    numbers: dict[str, object]
    test: dict[str, float]
    topics: tuple[dict[str, object], ...] = ()

    @property
    def usable(self) -> bool:
        """Whether nothing says stop."""
        return all(advice.level != "stop" for advice in self.advice)


def check(
    rows: Sequence[Row],
    *,
    tokens: Sequence[int] | None = None,
    max_length: int | None = None,
    held_out: float = 0.2,
    wanted: Sequence[Row] = (),
) -> Check:
    """Look at rows before anything is trained.

    `tokens`: the length of each row in the base's tokens, with `max_length` the limit of training. `held_out`: the share that would be
    the test set. `wanted`: rows of the kind that will be asked (logs, an evaluation set), to see what kinds are missing.
    """
    if tokens is not None and len(tokens) != len(rows):
        raise ConfigError(f"{len(tokens)} lengths for {counted(len(rows), 'row')}", allowed="one a row")
    advice: list[Advice] = []
    for look in LOOKS:
        advice += look(rows)
    if tokens is not None:
        advice += _lengths(rows, tokens, max_length)
    test = held_out_power(max(1, round(len(rows) * held_out)))
    advice += _test_size(test)
    groups = topics([subject_of(row) for row in (*rows, *wanted)])
    advice += _missing(rows, wanted, [set(topic.rows) for topic in groups], [topic.words for topic in groups])
    shares = tuple(
        {"share": sum(i < len(rows) for i in topic.rows) / max(len(rows), 1), "words": list(topic.words)} for topic in groups if topic.rows
    )
    order = sorted(range(len(advice)), key=lambda i: (LEVELS.index(advice[i].level), i))
    return Check(advice=tuple(advice[i] for i in order), numbers=summary(rows), test=test, topics=shares)


def held_out_power(n: int) -> dict[str, float]:
    """What `n` held-out rows can show: the half-width of the 95 % interval of a share near one half and near nine tenths (in points),
    the smallest difference between two models seen with power 0.8 when they differ on 30 % of rows, and the rows that ±2 points take."""
    halves = {f"half_width_at_{round(rate * 100)}": 100 * _half(rate, n) for rate in (0.5, 0.9)}
    return {
        "rows": float(n),
        **halves,
        "smallest_difference": 100 * smallest_detectable_rates(n, 0.3),
        "rows_for_2_points": float(rows_for(0.02)),
    }


def rows_for(half_width: float, rate: float = 0.5) -> int:
    """The fewest rows whose 95 % Wilson interval around `rate` is no wider than ± `half_width` (a share, such as 0.02)."""
    if not 0 < half_width < 0.5:
        raise ConfigError(f"a half-width of {half_width}", allowed="a share above 0 and below 0.5, such as 0.02")
    low, high = 1, ceil(1 / half_width**2) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _half(rate, middle) <= half_width else (middle + 1, high)
    return low


def _half(rate: float, n: int) -> float:
    interval = wilson(rate * n, n)
    return (interval.high - interval.low) / 2


def _origins(rows: Sequence[Row], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(rows[i].origin for i in places[:5])


def _rows(places: Sequence[int]) -> str:
    return f"{len(places)} row{'' if len(places) == 1 else 's'}"


def _s(places: Sequence[int]) -> str:
    return "s" if len(places) == 1 else ""


def _count(rows: Sequence[Row]) -> Iterator[Advice]:
    n = len(rows)
    if n < 10:
        yield Advice(
            level="stop", code="too_few_rows", found=f"{n} rows", do="collect at least 10 (the API's minimum); 50 good ones to start"
        )
    elif n < 50:
        yield Advice(level="fix", code="few_rows", found=f"{n} rows", do="collect at least 50; most tasks show a clear gain by 50–100")
    else:
        yield Advice(
            level="fine",
            code="rows",
            found=f"{counted(n, 'row')}",
            do="train on half and on all: each doubling brings a similar gain, so it tells what more would",
        )


def _duplicates(rows: Sequence[Row]) -> Iterator[Advice]:
    first: dict[str, int] = {}
    again = [i for i, row in enumerate(rows) if first.setdefault(row.id, i) != i]
    if again:
        yield Advice(
            level="fix",
            code="duplicates",
            found=f"{_rows(again)} repeat{_s(again)} another",
            do="tunesmith data clean drops them",
            rows=_origins(rows, again),
        )


def _near(rows: Sequence[Row]) -> Iterator[Advice]:
    pairs = near_duplicates([comparison_text(row) for row in rows], NEAR)
    similar = sorted({*pairs.left[pairs.jaccard < 1].tolist(), *pairs.right[pairs.jaccard < 1].tolist()})
    if similar:
        much = len(similar) > 0.1 * len(rows)
        do = "the split keeps them on one side; clean: near_duplicates: {action: drop} keeps one of each"
        text = f"{_rows(similar)} ({len(similar) / len(rows):.0%}) {'is' if len(similar) == 1 else 'are'} nearly the same as another"
        yield Advice(level="consider" if much else "fine", code="near_duplicates", found=text, do=do, rows=_origins(rows, similar))


def _contradictions(rows: Sequence[Row]) -> Iterator[Advice]:
    groups = contradictions(rows)
    if groups:
        n = sum(map(len, groups))
        do = "decide which answer is right, or clean: contradictions: majority"
        yield Advice(
            level="fix" if n > 0.02 * len(rows) else "consider",
            code="contradictions",
            found=f"{len(groups)} question{'s have' if len(groups) > 1 else ' has'} several answers ({counted(n, 'row')})",
            do=do,
            rows=_origins(rows, groups[0]),
        )


def _answers(rows: Sequence[Row]) -> Iterator[Advice]:
    answers = Counter(answer_of(row) for row in rows)
    if answers and len(rows) >= 20:
        text, n = answers.most_common(1)[0]
        if n > 0.4 * len(rows):
            do = "a model that always says it scores that much: compare against it, and balance the kinds if the real share is lower"
            yield Advice(level="consider", code="one_answer", found=f"{n / len(rows):.0%} of the answers are {text[:40]!r}", do=do)
    empty = [change.at for change in empty_answers(rows)]
    if empty:
        yield Advice(
            level="fix",
            code="empty_answers",
            found=f"{len(empty)} answer{'s are' if len(empty) > 1 else ' is'} empty",
            do="tunesmith data clean drops them",
            rows=_origins(rows, empty),
        )


def _refusals(rows: Sequence[Row]) -> Iterator[Advice]:
    places = [i for i, row in enumerate(rows) if is_refusal(row)]
    if len(places) > 0.05 * len(rows):
        level: Literal["fix", "consider"] = "fix" if len(places) > 0.2 * len(rows) else "consider"
        do = "keep the share that you want in use: the model learns it; clean: refusals: drop takes them out"
        yield Advice(
            level=level, code="refusals", found=f"{len(places) / len(rows):.0%} of the answers decline", do=do, rows=_origins(rows, places)
        )


def _labels(rows: Sequence[Row]) -> Iterator[Advice]:
    labels = [row.label if isinstance(row, Example) else None for row in rows]
    known = [i for i, label in enumerate(labels) if label is not None]
    counts = Counter(labels[i] for i in known)
    if len(counts) < 2:
        return
    rare = [str(label) for label, n in counts.items() if n < 10]
    if rare:
        yield Advice(
            level="consider",
            code="rare_labels",
            found=f"{len(rare)} label{'s have' if len(rare) > 1 else ' has'} fewer than 10 rows: {', '.join(rare[:5])}",
            do="collect more of these",
        )
    if len(known) >= 50 and len(counts) <= 100:
        wrong = [
            suspect
            for suspect in label_errors([question_of(rows[i]) for i in known], [str(labels[i]) for i in known])
            if suspect.score > 0.5
        ]
        if wrong:
            yield Advice(
                level="fix",
                code="label_errors",
                found=f"{len(wrong)} labels are probably wrong; the surest: {wrong[0].reason}",
                do="look through them: tunesmith data labels",
                rows=_origins(rows, [known[one.row] for one in wrong]),
            )


def _turns(rows: Sequence[Row]) -> Iterator[Advice]:
    twice = [i for i, row in enumerate(rows) if any(a.role == b.role != "tool" for a, b in pairwise(_conversation(row)))]
    if twice:
        yield Advice(
            level="consider",
            code="same_role_twice",
            found=f"{_rows(twice)} with two turns of one role one after the other",
            do="join them if it is one turn: most templates were never trained so",
            rows=_origins(rows, twice),
        )
    without = [i for i, row in enumerate(rows) if not any(turn.role in ("system", "developer") for turn in turns_of(row))]
    if 0 < len(without) < len(rows):
        do = "give all rows the system prompt that will be used when it is served"
        yield Advice(
            level="fix",
            code="system_missing",
            found=f"{len(without)} of {len(rows)} rows have no system prompt",
            do=do,
            rows=_origins(rows, without),
        )


def _calls(rows: Sequence[Row]) -> Iterator[Advice]:
    places = [i for i, row in enumerate(rows) if any(not _is_object(call.function.arguments) for call in _tool_calls(row))]
    if places:
        text = f"{_rows(places)} with tool calls whose arguments are no JSON object"
        do = "put them right: the model learns to call tools so that nothing can read it"
        yield Advice(level="fix", code="tool_arguments", found=text, do=do, rows=_origins(rows, places))


def _tool_calls(row: Row) -> Iterator[ToolCall]:
    return (call for turn in _conversation(row) if is_wanted(row) for call in turn.tool_calls)


def _conversation(row: Row) -> tuple[Message, ...]:
    """The turns as one conversation: of a pair with the preferred answer."""
    return turns_of(row)[:-1] if isinstance(row, Preference) else turns_of(row)


def _balance(rows: Sequence[Row]) -> Iterator[Advice]:
    """Of labelled answers both kinds are needed (Ethayarajh et al. 2024 weigh them where they are not 1:1 to 4:3)."""
    wanted = [row.desirable for row in rows if isinstance(row, Labelled)]
    yes = sum(wanted)
    if wanted and yes in (0, len(wanted)):
        kind, other = ("desirable", "undesirable") if yes else ("undesirable", "desirable")
        do = f"add {other} answers" + (", or train them as examples: method sft" if yes else ": there is nothing to learn towards")
        yield Advice(level="fix", code="one_sided", found=f"all {len(wanted)} answers are {kind}", do=do)
    elif wanted and not 0.1 <= yes / len(wanted) <= 0.9:
        do = "collect more of the rare kind, or weigh them: train.preference"
        yield Advice(level="consider", code="one_sided", found=f"{yes / len(wanted):.0%} of the answers are desirable", do=do)


def _documents(rows: Sequence[Row]) -> Iterator[Advice]:
    texts = [row.text for row in rows if isinstance(row, Document)]
    if texts:
        do = "train.method: text learns to go on with them; questions are not answered by that: add examples afterwards"
        yield Advice(level="fine", code="documents", found=f"{len(texts)} documents, {sum(map(len, texts)):,} characters", do=do)


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _specials(rows: Sequence[Row]) -> Iterator[Advice]:
    places = [i for i, row in enumerate(rows) if any(token in text for text in texts_of(row) for token in SPECIAL)]
    if places:
        do = "write them another way: a tokenizer may read them as control tokens"
        yield Advice(
            level="fix",
            code="special_tokens",
            found=f"{_rows(places)} hold{_s(places)} control tokens as text",
            do=do,
            rows=_origins(rows, places),
        )


def _personal(rows: Sequence[Row]) -> Iterator[Advice]:
    texts = ["\n".join(texts_of(row)) for row in rows]
    spans = find_all(texts)
    places = [i for i, personal in enumerate(spans) if personal]
    if places:
        kinds = ", ".join(f"{kind} ({n})" for kind, n in count(spans).items())
        do = "clean: personal_data: {action: pseudonymise}"
        yield Advice(
            level="fix", code="personal_data", found=f"{_rows(places)} hold{_s(places)} {kinds}", do=do, rows=_origins(rows, places)
        )


def _lengths(rows: Sequence[Row], tokens: Sequence[int], max_length: int | None) -> Iterator[Advice]:
    long = [i for i, n in enumerate(tokens) if max_length is not None and n > max_length]
    if long:
        text = f"{len(long)} rows are longer than {max_length} tokens (the longest has {max(tokens)})"
        yield Advice(
            level="fix",
            code="too_long",
            found=text,
            do="split them or raise max_length: a cut row can lose its answer",
            rows=_origins(rows, long),
        )
    elif tokens:
        cuts = np.percentile(tokens, [50, 95, 100])
        yield Advice(
            level="fine", code="lengths", found=f"tokens a row: median {cuts[0]:.0f}, 95 % below {cuts[1]:.0f}, longest {cuts[2]:.0f}"
        )


def _test_size(test: dict[str, float]) -> Iterator[Advice]:
    width, seen = test["half_width_at_50"], test["smallest_difference"]
    text = f"a test of {test['rows']:.0f} rows gives ±{width:.1f} points near 50 % and sees differences from {seen:.1f}"
    if width > 10:
        do = f"hold out more, or collect more: ±2 points take {test['rows_for_2_points']:.0f} rows"
        yield Advice(level="consider", code="small_test", found=text, do=do)
    else:
        yield Advice(level="fine", code="test", found=text)


def _missing(rows: Sequence[Row], wanted: Sequence[Row], groups: Sequence[set[int]], words: Sequence[tuple[str, ...]]) -> Iterator[Advice]:
    for members, marks in zip(groups, words, strict=True):
        asked = [i - len(rows) for i in sorted(members) if i >= len(rows)]
        have, want = (len(members) - len(asked)) / max(len(rows), 1), len(asked) / max(len(wanted), 1)
        if want >= 0.05 and have < want / 3:
            text = f"{want:.0%} of what is asked is of a kind that is {have:.1%} of the data: {', '.join(marks) or 'no common words'}"
            yield Advice(level="fix", code="missing_kind", found=text, do="collect or make rows of this kind", rows=_origins(wanted, asked))


LOOKS: tuple[Callable[[Sequence[Row]], Iterator[Advice]], ...] = (
    *(_count, _documents, _balance, _contradictions, _labels, _duplicates),
    *(_answers, _refusals, _turns, _calls, _specials, _personal, _near),
)
