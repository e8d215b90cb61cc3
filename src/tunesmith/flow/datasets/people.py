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
    pairs: list[tuple[str, Suspect]] = []
    labels = [getattr(row, "label", None) for row in rows]
    known = [i for i, label in enumerate(labels) if label is not None]
    questions, answers = [question_of(row) for row in rows], [answer_of(row) for row in rows]
    vectors = embed(questions, datasets.catalog, encoder) if encoder else None
    if known and 2 <= len({labels[i] for i in known}) <= _LABELS:
        datasets.progress.say(f"confident learning on {counted(len(known), 'label')}")
        sure = label_errors(
            [questions[i] for i in known], [str(labels[i]) for i in known], vectors=None if vectors is None else vectors[known]
        )
        pairs += [("label", suspect._replace(row=known[suspect.row])) for suspect in sure]
    pairs += [("neighbours", suspect) for suspect in disagreeing(questions, answers, names=[row.origin for row in rows])]
    pairs += [("not copied", suspect) for suspect in not_copied(questions, answers)]
    pairs += [("omitted", suspect) for suspect in omitted(questions, answers)]
    if not known:
        datasets.progress.say("comparing questions with their answers")
        theirs = latent(answers, _LATENT) if vectors is None else embed(answers, datasets.catalog, encoder)
        ours = latent(questions, _LATENT) if vectors is None else vectors
        pairs += [("unexpected", suspect) for suspect in unexpected_answers(ours, theirs)]
        pairs += [("mismatch", suspect) for suspect in mismatched_answers(ours, theirs)] if vectors is not None else []
    if base:
        pairs += [("unexplained", suspect) for suspect in _unexplained(datasets, data, base)]
    listed = [
        {
            **suspect._asdict(),
            "row": rows[suspect.row].id,
            "origin": rows[suspect.row].origin,
            "method": method,
            "answer": answers[suspect.row],
        }
        for method, suspect in pairs
    ]
    write_atomic(_suspects_file(datasets), msgspec.json.encode([{"row": entry["row"], "reason": entry["reason"]} for entry in listed]))
    return listed


def disagreeing(
    questions: Sequence[str], answers: Sequence[str], threshold: float = 0.8, names: Sequence[str] | None = None
) -> list[Suspect]:
    """Rows of which others ask nearly the same (Jaccard ≥ threshold) and more of them give one other answer, the nearest first.

    `names`: what the rows are called in the reasons (None: by their number).
    """
    pairs = near_duplicates(questions, threshold)
    plain = [normalised(answer) for answer in answers]
    near: dict[int, list[tuple[float, int]]] = {}
    for i, j, value in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.jaccard.tolist(), strict=True):
        near.setdefault(i, []).append((value, j))
        near.setdefault(j, []).append((value, i))
    outvoted = []
    for i, others in near.items():
        agree = sum(plain[j] == plain[i] for _, j in others)
        value, j = max(others, key=lambda pair: (plain[pair[1]] != plain[i], pair[0]))
        if plain[j] != plain[i] and sum(plain[k] == plain[j] for _, k in others) > agree:
            other = names[j] if names is not None else f"row {j + 1}"
            reason = f"{other} asks nearly the same (Jaccard {value:.2f}) and answers {answers[j][:80]!r}"
            outvoted.append(Suspect(i, answers[i], answers[j], value, reason))
    return sorted(outvoted, key=lambda suspect: (-suspect.score, suspect.row))


def not_copied(questions: Sequence[str], answers: Sequence[str], *, usual: float = 0.6, limit: float = 0.5) -> list[Suspect]:
    """Where answers are taken from their questions (extraction: the middle share of an answer's words found there is ≥ `usual`), the rows
    whose share is below `limit` of the usual one. Words that stand in more than a tenth of all answers (formats, classes) do not count."""
    words = [set(re.findall(r"\w+", normalised(text))) for text in answers]
    asked = [set(re.findall(r"\w+", normalised(text))) for text in questions]
    times: dict[str, int] = {}
    for own_words in words:
        for word in own_words:
            times[word] = times.get(word, 0) + 1
    common = {word for word, n in times.items() if n > max(2, 0.1 * len(answers))}
    own = [own_words - common for own_words in words]
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
    asked, answered = ([set(re.findall(r"\w{3,}", text)) for text in texts] for texts in (questions, answers))
    there, repeated = (
        Counter(word for words in asked for word in words),
        Counter(word for a, b in zip(asked, answered, strict=True) for word in a & b),
    )
    everywhere = Counter(word for words in answered for word in words)
    marks = {
        word: repeated[word] / n
        for word, n in there.items()
        if n >= least and repeated[word] >= usual * n and everywhere[word] < 1.5 * n and n < 0.5 * len(questions)
    }
    omissions = []
    for i, (mine, answer) in enumerate(zip(asked, answered, strict=True)):
        left_out = sorted((word for word in mine - answer if word in marks), key=lambda word: -marks[word])
        if left_out:
            word = left_out[0]
            reason = f"it leaves out '{word}', which {marks[word]:.0%} of the answers to questions with that word repeat"
            omissions.append(Suspect(i, answers[i], "", marks[word], reason))
    return sorted(omissions, key=lambda suspect: (-suspect.score, suspect.row))


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
            scored = model.nll([(sequence.ids.tolist(), sequence.mask.tolist()) for sequence in rendered])
            losses[which] += [nats / max(n, 1) for nats, n in scored]
        datasets.progress.bar("losses", begin + len(part), len(places))
    return [suspect._replace(row=places[suspect.row]) for suspect in unexplained_answers(*losses)]


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
        uncertainty = uncertainty_of([[float(token["logprob"]) for token in answer.logprobs] for answer in answers])
    wanted = like_failures(texts, read_failures(failures)) if failures is not None else None
    chosen = choose(texts, number, known=theirs, uncertainty=uncertainty, wanted=wanted, vectors=vectors)
    return [
        {**shown(rows[choice.row]), "uncertainty": choice.uncertainty, "wanted": choice.wanted, "distance": choice.distance}
        for choice in chosen
    ]


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
        entries = msgspec.json.decode(file.read_bytes(), type=list[_KeptSuspect])
    except msgspec.DecodeError as error:
        raise DataError(f"no list of suspects: {error}", where=str(file), remedy="tunesmith data labels writes it anew") from error
    reasons: dict[str, str] = {}
    for entry in entries:
        reasons.setdefault(entry.row, entry.reason)
    return reasons


def queue(datasets: Datasets, data: Rows, annotator: str, most: int) -> list[dict[str, Any]]:
    """The next rows that the annotator has not judged, suspects first, each with the reason why it is suspect."""
    reasons = kept_suspects(datasets)
    verdicts = review.verdicts(verdicts_file(datasets))
    waiting = review.waiting(data.rows, verdicts, annotator, list(reasons))
    return [{**shown(row), "answer": answer_of(row), "why": reasons.get(row.id, "")} for row, _ in zip(waiting, range(most), strict=False)]


def agreement(datasets: Datasets) -> dict[str, Any]:
    """How many verdicts there are, by whom, and how far people agree. Raises DataError when no row was judged by two."""
    verdicts = review.verdicts(verdicts_file(datasets))
    names = sorted({verdict.annotator for verdict in verdicts})
    agreed = {name: msgspec.structs.asdict(interval) for name, interval in review.agreement(verdicts).items()}
    return {"verdicts": len(verdicts), "annotators": names, "agreement": agreed}


def reviewed(datasets: Datasets, data: Rows, note: str = "") -> tuple[DatasetVersion, int]:
    """Apply the verdicts: a new version, and how many rows they changed or took out. Raises DataError when they are about other rows."""
    verdicts = review.verdicts(verdicts_file(datasets))
    ids = {row.id for row in data.rows}
    about = [verdict for verdict in verdicts if verdict.row in ids]
    if not about:
        raise DataError(f"none of the {len(verdicts)} verdicts is about a row of {data.name}", remedy="tunesmith data review")
    ledger = own_ledger(data.ledger)
    rows = apply(data.rows, "review", review.reviewed(about), ledger)
    left = {row.origin: row for row in rows}
    splits = {name: [left[row.origin] for row in part if row.origin in left] for name, part in data.splits.items()}
    changed = sum(left.get(row.origin) != row for row in data.rows)
    recipe = {"step": "review", "from": data.name, "verdicts": [msgspec.to_builtins(verdict) for verdict in about]}
    return datasets.freeze(splits or {ALL: rows}, recipe, ledger, data, note), changed


# --- leaks and personal data -------------------------------------------------------------------------------------------------------------


def leaks(data: Rows, evaluation: Sequence[Row], settings: Contamination) -> list[dict[str, Any]]:
    """Rows that hold an evaluation item, whole, in part or edited, the most similar first."""
    rows = data.rows
    matches = sorted(contaminated(rows, evaluation, settings), key=lambda match: (-match.jaccard, -match.containment, match.row))
    return [
        {
            "row": rows[match.row].origin,
            "item": evaluation[match.item].origin,
            "containment": match.containment,
            "jaccard": match.jaccard,
            "text": subject_of(rows[match.row])[:300],
            "item_text": subject_of(evaluation[match.item])[:300],
        }
        for match in matches
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
