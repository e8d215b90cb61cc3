"""People's work on rows: what is probably wrong, what to label next, verdicts and their agreement, leaks and personal data. The methods are
the data room's; here they meet models, versions and each other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tunesmith.core.atomic import write_atomic
from tunesmith.core.counted import counted
from tunesmith.core.errors import DataError, UsageError
from tunesmith.core.row_kinds import prompt_of, tools_of
from tunesmith.core.rows import Row
from tunesmith.core.types import Document, Example, Message
from tunesmith.data import review
from tunesmith.data.choose import choose, like_failures, uncertainty_of
from tunesmith.data.clean import apply
from tunesmith.data.contamination import Contamination, contaminated
from tunesmith.data.dedup import near_duplicates
from tunesmith.data.labels import Suspect, label_errors, mismatched_answers, unexpected_answers, unexplained_answers
from tunesmith.data.pii import KINDS, count, find_all
from tunesmith.data.text import answer_of, normalised, question_of, subject_of, texts_of
from tunesmith.data.topics import latent
from tunesmith.data.version import DatasetVersion
from tunesmith.flow.datasets.vectors import embed
from tunesmith.flow.datasets.versions import Datasets, own_ledger, shown
from tunesmith.flow.failures import read_failures
from tunesmith.flow.rows import Rows
from tunesmith.flow.sources import ALL

if TYPE_CHECKING:
    from tunesmith.models.base import Model
_LABELS = 100  # more different labels than this are free text
_LATENT = 128


# --- suspects ----------------------------------------------------------------------------------------------------------------------------


def suspects(datasets: Datasets, data: Rows, *, encoder: str = "", base: str = "") -> list[dict[str, Any]]:
    """Rows whose label or answer is probably wrong, surest first, with the reason; also kept for `data review`.

    Labelled rows: confident learning. Free text: answers that a small model of the other rows does not expect. All rows: others that ask
    nearly the same answer otherwise; where answers are copied from questions, words that are not there or that are left out. `encoder`:
    embeddings too. `base`: answers that their question does not explain (slow).
    """
    rows = data.rows
    found: list[tuple[str, Suspect]] = []
    labels = [getattr(row, "label", None) for row in rows]
    known = [i for i, label in enumerate(labels) if label is not None]
    questions, answers = [question_of(row) for row in rows], [answer_of(row) for row in rows]
    vectors = embed(questions, datasets.catalog, encoder) if encoder else None
    if known and 2 <= len({labels[i] for i in known}) <= _LABELS:
        datasets.progress.say(f"confident learning on {counted(len(known), 'label')}")
        sure = label_errors(
            [questions[i] for i in known], [str(labels[i]) for i in known], vectors=None if vectors is None else vectors[known]
        )
        found += [("label", one._replace(row=known[one.row])) for one in sure]
    found += [("neighbours", one) for one in disagreeing(questions, answers, names=[row.origin for row in rows])]
    found += [("not copied", one) for one in not_copied(questions, answers)]
    found += [("omitted", one) for one in omitted(questions, answers)]
    if not known:
        datasets.progress.say("comparing questions with their answers")
        theirs = latent(answers, _LATENT) if vectors is None else embed(answers, datasets.catalog, encoder)
        ours = latent(questions, _LATENT) if vectors is None else vectors
        found += [("unexpected", one) for one in unexpected_answers(ours, theirs)]
        found += [("mismatch", one) for one in mismatched_answers(ours, theirs)] if vectors is not None else []
    if base:
        found += [("unexplained", one) for one in _unexplained(datasets, data, base)]
    listed = [
        {**one._asdict(), "row": rows[one.row].id, "origin": rows[one.row].origin, "method": method, "answer": answers[one.row]}
        for method, one in found
    ]
    write_atomic(_suspects_file(datasets), msgspec.json.encode([{"row": one["row"], "reason": one["reason"]} for one in listed]))
    return listed


def disagreeing(
    questions: Sequence[str], answers: Sequence[str], threshold: float = 0.8, names: Sequence[str] | None = None
) -> list[Suspect]:
    """Rows of which others ask nearly the same (Jaccard ≥ threshold) and more of them give one other answer, the nearest first.

    `names`: what the rows are called in the reasons (None: by their number).
    """
    pairs = near_duplicates(questions, threshold)
    said = [normalised(answer) for answer in answers]
    near: dict[int, list[tuple[float, int]]] = {}
    for i, j, value in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist(), strict=True):
        near.setdefault(i, []).append((value, j))
        near.setdefault(j, []).append((value, i))
    found = []
    for i, others in near.items():
        agree = sum(said[j] == said[i] for _, j in others)
        value, j = max(others, key=lambda pair: (said[pair[1]] != said[i], pair[0]))
        if said[j] != said[i] and sum(said[k] == said[j] for _, k in others) > agree:
            other = names[j] if names is not None else f"row {j + 1}"
            reason = f"{other} asks nearly the same (Jaccard {value:.2f}) and answers {answers[j][:80]!r}"
            found.append(Suspect(i, answers[i], answers[j], value, reason))
    return sorted(found, key=lambda one: (-one.score, one.row))


def not_copied(questions: Sequence[str], answers: Sequence[str], *, usual: float = 0.6, limit: float = 0.5) -> list[Suspect]:
    """Where answers are taken from their questions (extraction: the middle share of an answer's words found there is ≥ `usual`), the rows
    whose share is below `limit` of the usual one. Words that stand in more than a tenth of all answers (formats, classes) do not count."""
    words = [set(re.findall(r"\w+", normalised(text))) for text in answers]
    asked = [set(re.findall(r"\w+", normalised(text))) for text in questions]
    times: dict[str, int] = {}
    for one in words:
        for word in one:
            times[word] = times.get(word, 0) + 1
    common = {word for word, n in times.items() if n > max(2, 0.1 * len(answers))}
    own = [one - common for one in words]
    shares = [len(mine & there) / len(mine) if mine else None for mine, there in zip(own, asked, strict=True)]
    known = [share for share in shares if share is not None]
    middle = float(np.median(known)) if len(known) >= 20 else 0.0
    if middle < usual:
        return []
    low = [(share, i) for i, share in enumerate(shares) if share is not None and share < limit * middle]
    return [
        Suspect(i, answers[i], "", 1 - share, f"{share:.0%} of its answer's own words are in the question; usual is {middle:.0%}")
        for share, i in sorted(low)
    ]


def omitted(questions: Sequence[str], answers: Sequence[str], *, usual: float = 0.8, least: int = 10) -> list[Suspect]:
    """Where answers are taken from their questions: rows that leave out a word which nearly all other answers to questions with it repeat.

    A word counts when it stands in ≥ `least` questions and in the answers to ≥ `usual` of them; the score is that share. Words that most
    answers have anyway (formats) do not count. Case matters: `Bank` may be a name where `bank` is none.
    """
    asked, said = ([set(re.findall(r"\w{3,}", text)) for text in texts] for texts in (questions, answers))
    there, repeated = (
        Counter(word for one in asked for word in one),
        Counter(word for a, b in zip(asked, said, strict=True) for word in a & b),
    )
    everywhere = Counter(word for one in said for word in one)
    marks = {
        word: repeated[word] / n
        for word, n in there.items()
        if n >= least and repeated[word] >= usual * n and everywhere[word] < 1.5 * n and n < 0.5 * len(questions)
    }
    found = []
    for i, (mine, answer) in enumerate(zip(asked, said, strict=True)):
        left_out = sorted((word for word in mine - answer if word in marks), key=lambda word: -marks[word])
        if left_out:
            word = left_out[0]
            reason = f"it leaves out '{word}', which {marks[word]:.0%} of the answers to questions with that word repeat"
            found.append(Suspect(i, answers[i], "", marks[word], reason))
    return sorted(found, key=lambda one: (-one.score, one.row))


def _unexplained(datasets: Datasets, data: Rows, base: str) -> list[Suspect]:
    """Answers whose loss after their question is out of line with their loss alone, under the untrained base."""

    with datasets.models() as models:
        model = models.load(models.ref(base), base)
    rows = data.examples()
    places = [i for i, row in enumerate(rows) if row.messages and row.messages[-1].role == "assistant" and row.messages[-1].text]
    alone = [Message(role="user", content=" "), Message(role="assistant", content="")]
    losses: list[list[float]] = [[], []]
    for begin in range(0, len(places), 32):
        part = [rows[i] for i in places[begin : begin + 32]]
        bare = [Example(id=row.id, messages=(alone[0], msgspec.structs.replace(alone[1], content=row.messages[-1].text))) for row in part]
        for which, examples in enumerate((part, bare)):
            rendered = model.renderer.examples(examples)
            scored = model.nll([(one.ids.tolist(), one.mask.tolist()) for one in rendered])
            losses[which] += [nats / max(n, 1) for nats, n in scored]
        datasets.progress.bar("losses", begin + len(part), len(places))
    return [one._replace(row=places[one.row]) for one in unexplained_answers(*losses)]


# --- what next, review -------------------------------------------------------------------------------------------------------------------


def choose_next(
    datasets: Datasets,
    pool: Rows,
    known: Rows | None,
    number: int,
    *,
    model: Model | None = None,
    encoder: str = "",
    failures: Path | None = None,
) -> list[dict[str, Any]]:
    """Rows of the pool in the order in which they should be labelled: uncertain (of `model`, by its tokens' probabilities), like the
    failures that a report wrote into `failures`, and unlike what is known and each other. Raises UsageError when the model tells no
    probabilities, DataError for a file that no report wrote."""
    from tunesmith.core.types import Prompt, Sampling

    rows, texts = pool.rows, [subject_of(row) for row in pool.rows]
    theirs = [subject_of(row) for row in known.rows] if known is not None else []
    vectors = None
    if encoder:
        datasets.progress.say(f"embedding {counted(len(texts) + len(theirs), 'question')}")
        both = embed([*texts, *theirs], datasets.catalog, encoder)
        vectors = (both[: len(texts)], both[len(texts) :])
    uncertainty = None
    if model is not None:
        if any(isinstance(row, Document) for row in rows):
            raise UsageError(f"{pool.name} holds documents, which ask a model nothing", allowed="choosing without --model")
        prompts = [Prompt(messages=prompt_of(row), tools=tools_of(row)) for row in rows]
        answers = model.answer(prompts, Sampling(max_tokens=48, top_logprobs=0), lambda i, _: datasets.progress.bar("asking", i, len(rows)))
        if not any(answer.logprobs for answer in answers):
            raise UsageError(f"'{model.name}' tells no probabilities", allowed="a local model, or an endpoint with logprobs")
        uncertainty = uncertainty_of([[float(one["logprob"]) for one in answer.logprobs] for answer in answers])
    wanted = like_failures(texts, read_failures(failures)) if failures is not None else None
    chosen = choose(texts, number, known=theirs, uncertainty=uncertainty, wanted=wanted, vectors=vectors)
    return [{**shown(rows[one.row]), "uncertainty": one.uncertainty, "wanted": one.wanted, "distance": one.distance} for one in chosen]


class _KeptSuspect(msgspec.Struct):
    row: str
    reason: str


def _suspects_file(datasets: Datasets) -> Path:
    return datasets.layout.review / "suspects.json"


def verdicts_file(datasets: Datasets) -> Path:
    """Where verdicts are kept; the file only grows."""
    return datasets.layout.review / "verdicts.jsonl"


def kept_suspects(datasets: Datasets) -> dict[str, str]:
    """Row → reason, in the order in which `suspects` ranked them; empty before it ran."""
    file = _suspects_file(datasets)
    if not file.is_file():
        return {}
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=list[_KeptSuspect])
    except msgspec.DecodeError as error:
        raise DataError(f"no list of suspects: {error}", where=str(file), remedy="tunesmith data labels writes it anew") from error
    found: dict[str, str] = {}
    for one in kept:
        found.setdefault(one.row, one.reason)
    return found


def queue(datasets: Datasets, data: Rows, annotator: str, most: int) -> list[dict[str, Any]]:
    """The next rows that the annotator has not judged, suspects first, each with the reason why it is suspect."""
    reasons = kept_suspects(datasets)
    said = review.verdicts(verdicts_file(datasets))
    waiting = review.waiting(data.rows, said, annotator, list(reasons))
    return [{**shown(row), "answer": answer_of(row), "why": reasons.get(row.id, "")} for row, _ in zip(waiting, range(most), strict=False)]


def agreement(datasets: Datasets) -> dict[str, Any]:
    """How many verdicts there are, by whom, and how far people agree. Raises DataError when no row was judged by two."""
    said = review.verdicts(verdicts_file(datasets))
    names = sorted({one.annotator for one in said})
    found = {name: msgspec.structs.asdict(interval) for name, interval in review.agreement(said).items()}
    return {"verdicts": len(said), "annotators": names, "agreement": found}


def reviewed(datasets: Datasets, data: Rows, note: str = "") -> tuple[DatasetVersion, int]:
    """Apply the verdicts: a new version, and how many rows they changed or took out. Raises DataError when they are about other rows."""
    said = review.verdicts(verdicts_file(datasets))
    ids = {row.id for row in data.rows}
    about = [one for one in said if one.row in ids]
    if not about:
        raise DataError(f"none of the {len(said)} verdicts is about a row of {data.name}", remedy="tunesmith data review")
    ledger = own_ledger(data.ledger)
    rows = apply(data.rows, "review", review.reviewed(about), ledger)
    left = {row.origin: row for row in rows}
    splits = {name: [left[row.origin] for row in part if row.origin in left] for name, part in data.splits.items()}
    changed = sum(left.get(row.origin) != row for row in data.rows)
    recipe = {"step": "review", "from": data.name, "verdicts": [msgspec.to_builtins(one) for one in about]}
    return datasets.freeze(splits or {ALL: rows}, recipe, ledger, data, note), changed


# --- leaks and personal data -------------------------------------------------------------------------------------------------------------


def leaks(data: Rows, evaluation: Sequence[Row], settings: Contamination) -> list[dict[str, Any]]:
    """Rows that hold an evaluation item, whole, in part or edited, the most similar first."""
    rows = data.rows
    found = sorted(contaminated(rows, evaluation, settings), key=lambda one: (-one.jaccard, -one.containment, one.row))
    return [
        {
            "row": rows[one.row].origin,
            "item": evaluation[one.item].origin,
            "containment": one.containment,
            "jaccard": one.jaccard,
            "text": subject_of(rows[one.row])[:300],
            "item_text": subject_of(evaluation[one.item])[:300],
        }
        for one in found
    ]


def personal(data: Rows, kinds: Sequence[str] = KINDS, *, samples: int = 5, around: int = 30) -> dict[str, Any]:
    """Rows with each kind of personal data or secret, and sampled places with the words around them."""
    rows = data.rows
    texts = [(i, text) for i, row in enumerate(rows) for text in texts_of(row)]
    spans = find_all([text for _, text in texts], kinds)
    by_row: dict[int, list[Any]] = {}
    places: dict[str, list[dict[str, str]]] = {}
    for (i, text), here in zip(texts, spans, strict=True):
        by_row.setdefault(i, []).extend(here)
        for span in here:
            listed = places.setdefault(span.kind, [])
            if len(listed) < samples:
                before, after = text[max(0, span.start - around) : span.start], text[span.end : span.end + around]
                listed.append({"origin": rows[i].origin, "before": before, "found": text[span.start : span.end], "after": after})
    return {"rows": len(rows), "with_any": sum(map(bool, by_row.values())), "kinds": count(list(by_row.values())), "samples": places}
