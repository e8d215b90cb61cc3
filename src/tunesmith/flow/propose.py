"""What a first look at rows proposes: the training method that takes them, the metrics that can rate them, the baselines to beat. Trains
nothing, and knows nothing about files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tunesmith.core.row_kinds import NAMES, as_examples, kind_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Labelled, Preference
from tunesmith.data.formats.rft import REFERENCES

_SHORT = 40  # characters: answers up to this are compared exactly, longer ones in part
ASKED = ("  - {name: zero-shot}", "  - {name: few-shot, shots: 4}")


@dataclass(frozen=True)
class Proposal:
    """The values of a first project file, each fit for the rows: `train` and `source` are further lines of these sections."""

    method: str = "sft"
    metrics: tuple[str, ...] = ("exact_match",)
    baselines: tuple[str, ...] = ASKED
    train: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()


def proposal(rows: Sequence[Row], format: str = "") -> Proposal:
    """What fits these rows, which are the first of a source in that format; the defaults for no rows."""
    kind = kind_of(rows)
    if kind is Document:
        hint = "documents: trained as running text without a chat template, measured by how likely the held-out ones are"
        return Proposal("text", ("bits_per_byte", "perplexity"), ("  - {name: base}",), hints=(hint,))
    if kind is Preference or kind is Labelled:
        method = "dpo" if kind is Preference else "kto"
        hint = f"{NAMES[kind]}: trained by {method}; held-out prompts are asked, and compared with the answer that is wanted"
        return Proposal(method, ("rougeL",), hints=(hint,))
    examples = as_examples(rows)
    unanswered = [row for row in examples if not row.messages or row.messages[-1].role != "assistant"]
    if examples and len(unanswered) == len(examples):
        return _without_answers(examples)
    hints: tuple[str, ...] = ()
    if any(row.reference is not None or row.meta.keys() & REFERENCES for row in examples):
        hints = ("the rows have references: once a grader says what a right answer is, train.method: grpo trains for it",)
    return Proposal(metrics=(_metric(examples),), hints=hints)


def _metric(examples: Sequence[Example]) -> str:
    lengths = [len(row.answer) for row in examples]
    return "rougeL" if lengths and median(lengths) > _SHORT else "exact_match"


def _without_answers(examples: Sequence[Example]) -> Proposal:
    """Rows that only ask: with references they are trained by reinforcement, without them they cannot be trained yet."""
    shared = [key for key in sorted(REFERENCES) if all(key in row.meta for row in examples)]
    known = all(row.reference is not None for row in examples)
    if not known and not shared:
        hint = "the rows only ask: give them answers (tunesmith data synth), or a reference that a grader can compare with"
        return Proposal(hints=(hint,))
    grader = "{type: string_check, name: same, operation: eq, input: '{{ sample.output_text }}', reference: '{{ item.reference }}'}"
    source = () if known else (f"    map: {{reference: {shared[0]}}}",)
    hint = "the rows only ask and have references: trained by reinforcement, with a grader that compares exactly; put a better one there"
    return Proposal("grpo", train=("  reinforcement:", f"    grader: {grader}"), source=source, hints=(hint,))
