"""Reads what other evaluation tools wrote: rows and checks to run here, results to compare with ours; runs no code that they carry.

OpenAI evals           samples (JSONL) → rows; an Evals API object → rows and its graders as they stand
promptfoo              prompts × tests → rows, and one metric that checks each row's own assertions
lm-evaluation-harness  samples_*.jsonl → rows and an Evaluation
Inspect                .json or .eval log → rows and an Evaluation
"""

from __future__ import annotations

import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import yaml

from tunesmith.core.errors import DataError, Fault, NotFound
from tunesmith.core.json_text import json_value
from tunesmith.core.types import Answer, Example, Message, Sampling, Score, digest, example_id
from tunesmith.evaluate.metrics import Measured, Metric, metric
from tunesmith.evaluate.run import Evaluation, Row, dataset_digest

T = TypeVar("T")


class Imported(NamedTuple):
    """Rows to evaluate, and how the other tool rates them: metrics that run here, or grader objects for `graders`."""

    name: str
    examples: list[Example]
    metrics: list[Metric] = []
    graders: list[dict[str, Any]] = []


class ImportedResult(NamedTuple):
    """What another tool measured: its rows, and its answers and scores as one of our evaluations."""

    examples: list[Example]
    evaluation: Evaluation


def _messages(given: object) -> tuple[Message, ...]:
    """Text is one user message. Raises ValueError for anything but text or messages with a role and text."""
    if isinstance(given, str):
        return (Message(role="user", content=given),)
    if not isinstance(given, list) or not given:
        raise ValueError(f"expected text or messages, got {type(given).__name__}")
    messages = []
    for turn in given:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if isinstance(content, list):
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if role not in ("system", "developer", "user", "assistant", "tool") or not isinstance(content, str):
            raise ValueError(f"a message needs a known role and text, got role {role!r}")
        messages.append(Message(role=role, content=content))
    return tuple(messages)


def _row(messages: tuple[Message, ...], references: Sequence[str], origin: str, meta: dict[str, Any] | None = None) -> Example:
    several = {"references": list(references)} if len(references) > 1 else {}
    reference = references[0] if references else ""
    return Example(
        id=example_id(messages, (), reference), messages=messages, reference=reference, meta={**several, **(meta or {})}, origin=origin
    )


def _texts(given: object) -> list[str]:
    return [str(item) for item in given] if isinstance(given, list) else [str(given)]


def _each(items: Iterable[tuple[str, Any]], make: Callable[[str, Any], T], what: str) -> list[T]:
    """Every item made, or one DataError with the faults of all that cannot be."""
    made, faults = [], []
    for where, item in items:
        try:
            made.append(make(where, item))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            faults.append(Fault(where, "not_readable", f"{type(error).__name__}: {error}"))
    if faults or not made:
        raise DataError(f"no {what}" if not made else f"{len(faults)} of {len(made) + len(faults)} rows are no {what}", faults=faults)
    return made


def _lines(data: bytes, origin: str) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), 1):  # splitlines would also split inside texts
        if line.strip():
            try:
                items.append((f"{origin}:{number}", json_value(line)))
            except ValueError as error:
                raise DataError(f"line {number} is no JSON: {error}", where=f"{origin}:{number}") from error
    return items


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"cannot read: {error.strerror}", where=str(path)) from error


def openai_rows(data: bytes, origin: str) -> list[Example]:
    """Rows of an OpenAI evals samples file: `{"input": messages or text, "ideal": text or texts}` a line.

    Raises DataError with the faults of all lines.
    """

    def make(where: str, row: Any) -> Example:
        return _row(_messages(row["input"]), _texts(row["ideal"]), where)

    return _each(_lines(data, origin), make, "OpenAI evals sample")


def openai_eval(path: Path) -> Imported:
    """An eval of OpenAI's Evals API: `testing_criteria` as grader objects, and the rows of its inline data source, if it has one.

    An item's `input` (or `messages`, `prompt`, `question`) is the prompt, `ideal` (`reference`, `answer`, `expected`) the reference; the
    item whole is kept in `meta["item"]` for the graders' templates.
    """
    body = json_value(_read(path))
    if not isinstance(body, dict) or not isinstance(body.get("testing_criteria"), list):
        raise DataError("no testing_criteria", where=str(path), allowed="an eval object with testing_criteria and data_source")
    content = ((body.get("data_source") or {}).get("source") or {}).get("content") or []

    def make(where: str, entry: Any) -> Example:
        item = entry["item"]
        prompt = next(item[key] for key in ("input", "messages", "prompt", "question") if key in item)
        ideal: object = next((item[key] for key in ("ideal", "reference", "answer", "expected") if key in item), [])
        return _row(_messages(prompt), _texts(ideal), where, {"item": item})

    rows = _each(((f"{path}: item {i}", entry) for i, entry in enumerate(content)), make, "item") if content else []
    return Imported(str(body.get("name", path.stem)), rows, graders=body["testing_criteria"])


# promptfoo's assertion types → our metric and the options made from the assertion; a threshold is promptfoo's own default.
_ASSERTIONS: dict[str, Callable[[Any], tuple[str, dict[str, Any]]]] = {
    "equals": lambda _: ("exact_match", {}),
    "contains": lambda _: ("includes", {}),
    "icontains": lambda _: ("includes", {"ignore_case": True}),
    "starts-with": lambda _: ("starts_with", {}),
    "regex": lambda value: ("regex", {"pattern": str(value)}),
    "is-json": lambda value: ("json_schema", {"schema": value}) if isinstance(value, dict) else ("json_valid", {}),
    "rouge-n": lambda _: ("rouge1", {}),
    "bleu": lambda _: ("bleu", {}),
    "latency": lambda _: ("latency", {}),
}
_THRESHOLDS = {"rouge-n": 0.75, "bleu": 0.5, "latency": 1000.0}
_LISTED = {"contains-any": "contains", "contains-all": "contains", "icontains-any": "icontains", "icontains-all": "icontains"}


def promptfoo(path: Path) -> Imported:
    """A promptfoo configuration: each prompt with each test's variables is a row; the metric is the share of a row's assertions that hold.

    Prompts are texts or JSON chats with `{{variables}}`; a variable that is a list gives a row for each of its values, in all combinations
    (unless `options.disableVarExpansion`). Of transforms those are done that only change case or trim. Raises DataError that names every
    assertion type and transform that needs code or a model of its own (javascript, python, llm-rubric, similar, …): those become
    `module:function` metrics or judges here.
    """
    from jinja2 import TemplateError

    from tunesmith.core.template_limits import Bounded

    body = yaml.safe_load(_read(path))
    if not isinstance(body, dict) or not isinstance(body.get("prompts"), list) or not isinstance(body.get("tests"), list):
        raise DataError("no promptfoo configuration", where=str(path), allowed="`prompts` and `tests` as lists in the file itself")
    shared = body.get("defaultTest") or {}
    environment = Bounded()
    pairs = [
        (f"{path}: prompt {p}, test {t}" + (f", values {v}" if len(several) > 1 else ""), (prompt, test, variables))
        for p, prompt in enumerate(body["prompts"])
        for t, test in enumerate(body["tests"])
        for several in [_expanded(shared, test)]
        for v, variables in enumerate(several)
    ]

    def make(where: str, pair: tuple[Any, dict[str, Any], dict[str, Any]]) -> Example:
        prompt, test, variables = pair
        template = prompt if isinstance(prompt, str) else prompt["raw"]
        if template.startswith("file://"):
            raise ValueError(f"the prompt is another file: {template}")
        options = {**(shared.get("options") or {}), **(test.get("options") or {})}
        if unknown := sorted(options.keys() - {"transform", "disableVarExpansion"}):
            raise ValueError(f"the option '{unknown[0]}' has no counterpart; allowed: transform, disableVarExpansion")
        try:
            text = environment.render(environment.bounded(template), **variables)
        except TemplateError as error:
            raise ValueError(f"the prompt cannot be filled in: {error}") from error
        both = (*(shared.get("assert") or ()), *(test.get("assert") or ()))
        asserted = [_assertion(assertion, variables, environment, options.get("transform")) for assertion in both]
        chat = json_value(text) if text.lstrip().startswith("[") else text
        row = _row(_messages(chat), [], where, {"vars": variables, "assert": asserted})
        # two tests may ask the same and check something else
        return msgspec.structs.replace(row, id=digest(row.id, both, options, size=12))

    return Imported(str(body.get("description", path.stem)), _each(pairs, make, "promptfoo test"), [promptfoo_metric()])


def _expanded(shared: dict[str, Any], test: dict[str, Any]) -> list[dict[str, Any]]:
    """The variables of a test, each list among them one value at a time."""
    variables = {**(shared.get("vars") or {}), **(test.get("vars") or {})}
    options = {**(shared.get("options") or {}), **(test.get("options") or {})}
    if options.get("disableVarExpansion"):
        return [variables]
    values = [value if isinstance(value, list) else [value] for value in variables.values()]
    return [dict(zip(variables, chosen, strict=True)) for chosen in itertools.product(*values)]


_METHODS: dict[str, Callable[[str], str]] = {
    "toLowerCase": str.lower,
    "toUpperCase": str.upper,
    "trim": str.strip,
    "trimStart": str.lstrip,
    "trimEnd": str.rstrip,
    "toString": str,
}
_CHAIN = re.compile(r"\s*(?:return\s+)?output((?:\s*\.\s*\w+\(\s*\))*)\s*;?\s*")


def _methods(transform: Any) -> list[str]:
    """The methods that a transform such as `output.trim().toLowerCase()` names. Raises ValueError for any other code."""
    chain = _CHAIN.fullmatch(transform) if isinstance(transform, str) else None
    names = re.findall(r"\w+(?=\()", chain[1]) if chain else []
    if chain is None or not set(names) <= _METHODS.keys():
        raise ValueError(f"the transform {transform!r} needs code; allowed: output followed by .{'(), .'.join(_METHODS)}()")
    return names


def _assertion(given: dict[str, Any], variables: dict[str, Any], environment: Any, transform: Any = None) -> dict[str, Any]:
    kind = str(given["type"]).removeprefix("not-")
    if _LISTED.get(kind, kind) not in _ASSERTIONS:
        known = ", ".join(sorted({*_ASSERTIONS, *_LISTED}))
        raise ValueError(f"assertion type '{kind}' has no counterpart without code or a judge; allowed: {known}, each also with not-")
    value = given.get("value")
    if isinstance(value, str) and kind != "regex":
        value = environment.render(environment.bounded(value), **variables)
    if isinstance(value, list):
        value = [environment.render(environment.bounded(item), **variables) if isinstance(item, str) else item for item in value]
    methods = [*(_methods(transform) if transform else ()), *(_methods(given["transform"]) if given.get("transform") else ())]
    rest = {"threshold": given.get("threshold"), "weight": float(given.get("weight", 1))}
    return {"type": str(given["type"]), "value": value, **rest, **({"transform": methods} if methods else {})}


def promptfoo_metric() -> Metric:
    """The weighted share of the row's own assertions that hold. Range 0 to 1, higher is better, mean; missing for a row without any."""

    def rate(example: Example, answer: Answer) -> Measured:
        asserted = example.meta.get("assert") or []
        weights = sum(assertion["weight"] for assertion in asserted)
        if not weights:
            return Measured(None, detail="no assertions")
        failed = [assertion for assertion in asserted if not _holds(assertion, example, answer)]
        share = 1 - sum(assertion["weight"] for assertion in failed) / weights
        return Measured(share, detail="; ".join(f"{assertion['type']}: {assertion['value']}" for assertion in failed))

    return Metric(name="promptfoo", rate=rate)


def _holds(assertion: dict[str, Any], example: Example, answer: Answer) -> bool:
    for method in assertion.get("transform", ()):
        answer = msgspec.structs.replace(answer, text=_METHODS[method](answer.text))
    assertion = {**assertion, "transform": ()}
    negated, kind = assertion["type"].startswith("not-"), assertion["type"].removeprefix("not-")
    if kind in _LISTED:
        each = [_holds({**assertion, "type": _LISTED[kind], "value": value}, example, answer) for value in _texts(assertion["value"])]
        held = any(each) if kind.endswith("any") else all(each)
        return held is not negated
    name, options = _ASSERTIONS[kind](assertion["value"])
    value = metric(name, **options)(_row(example.messages, [str(assertion["value"])], ""), answer).value
    threshold = assertion["threshold"] if assertion["threshold"] is not None else _THRESHOLDS.get(kind, 1.0)
    if value is None:
        return False
    if kind == "latency":
        return (value * 1000 <= threshold) is not negated
    return (value / (100 if kind == "bleu" else 1) >= threshold) is not negated


def lm_eval_log(path: Path, *, model: str, filter_name: str | None = None) -> ImportedResult:
    """A `samples_*.jsonl` of lm-evaluation-harness (`--log_samples`) as rows and an evaluation.

    A task with several filters logs each row once a filter: `filter_name` picks one, by default the first in the file. Metrics are what the
    rows carry as numbers; multiple-choice rows have no text, their answer is the index of the likeliest choice.
    """
    items = _lines(_read(path), str(path))
    wanted = filter_name or next((str(row.get("filter")) for _, row in items if "filter" in row), None)
    samples = [(where, row) for where, row in items if wanted is None or str(row.get("filter", wanted)) == wanted]
    known = {"doc_id", "doc_hash", "prompt_hash", "target_hash"}

    def make(where: str, row: Any) -> tuple[Example, Answer, dict[str, float]]:
        asked = row["arguments"]
        first = next(iter(asked.values())) if isinstance(asked, dict) else asked[0]
        prompt = first["arg_0"] if isinstance(first, dict) else first[0]
        example = _row(_messages(_chat(prompt)), _texts(row["target"]), where, {"doc_id": row["doc_id"], "doc": row.get("doc")})
        names = row.get("metrics") or [key for key, v in row.items() if isinstance(v, int | float) and key not in known]
        return example, Answer(text=_said(row["resps"])), {n: float(row[n]) for n in names if isinstance(row.get(n), int | float)}

    return _result(model, path, _each(samples, make, "lm-eval sample"))


def _chat(prompt: object) -> object:
    """lm-eval keeps a chat as JSON text, alone or in a list of one."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt.lstrip().startswith('[{"role"'):
        return json_value(prompt)
    return prompt


def _said(responses: list[Any]) -> str:
    """Generated text, or the number of the likeliest choice for (log-likelihood, is greedy) pairs."""
    first = responses[0][0]
    if isinstance(first, str):
        return first
    return str(max(range(len(responses)), key=lambda i: float(responses[i][0][0])))


_MARKS = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}


_MOST_UNPACKED = 1 << 30  # bytes of all samples of a log together


def _archived(path: Path) -> tuple[Any, list[Any]]:
    """The header and the samples of a log that is an archive. Raises DataError for a damaged one, and one that unpacks without an end."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member for member in archive.infolist() if member.filename == "header.json" or member.filename.startswith("samples/")
            ]
            size = sum(member.file_size for member in members)
            if size > _MOST_UNPACKED:
                raise DataError(f"its samples unpack to {size:,} bytes", where=str(path), allowed=f"{_MOST_UNPACKED:,}")
            names = sorted(member.filename for member in members if member.filename.endswith(".json") and member.filename != "header.json")
            return json_value(archive.read("header.json")), [json_value(archive.read(name)) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"the log cannot be read: {error}", where=str(path), remedy="write it again, or give the .json log") from error


def inspect_log(path: Path) -> ImportedResult:
    """An Inspect log (`.eval` or `.json`) as rows and an evaluation; marks C, I, P, N count 1, 0, ½, 0, as Inspect counts them.

    Each epoch of a sample is a row of its own, with the sample as its group. A sample that ended in an error has missing scores.
    """
    if zipfile.is_zipfile(path):
        head, samples = _archived(path)
    else:
        head = json_value(_read(path))
        samples = head.get("samples") or []

    def make(where: str, sample: Any) -> tuple[Example, Answer, dict[str, float]]:
        meta = {"sample": sample["id"], "epoch": sample.get("epoch", 1)}
        example = _row(_messages(sample["input"]), _texts(sample["target"]), where, meta)
        example = msgspec.structs.replace(example, group=str(sample["id"]))
        output = sample.get("output") or {}
        used: dict[str, Any] = next(iter((sample.get("model_usage") or {}).values()), {})
        answer = Answer(
            text=_completion(output),
            finish_reason="error" if sample.get("error") else "stop",
            prompt_tokens=int(used.get("input_tokens", 0)),
            completion_tokens=int(used.get("output_tokens", 0)),
            total_s=output.get("time"),
        )
        rated = {name: _mark(score["value"]) for name, score in (sample.get("scores") or {}).items()}
        return example, answer, {name: value for name, value in rated.items() if value is not None}

    made = _each(((f"{path}: sample {s.get('id')}", s) for s in samples), make, "Inspect sample")
    return _result(str(head["eval"]["model"]), path, made)


def _completion(output: dict[str, Any]) -> str:
    choices = output.get("choices") or []
    content = (choices[0].get("message") or {}).get("content", "") if choices else output.get("completion", "")
    return "".join(part.get("text", "") for part in content) if isinstance(content, list) else str(content)


def _mark(value: object) -> float | None:
    if isinstance(value, str):
        return _MARKS.get(value)
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def _result(model: str, path: Path, made: Sequence[tuple[Example, Answer, dict[str, float]]]) -> ImportedResult:
    names = tuple(sorted({name for _, _, scores in made for name in scores}))
    examples: dict[str, Example] = {}
    rows = []
    for i, (example, answer, scores) in enumerate(made):
        own = f"{example.id}-{i}" if example.id in examples else example.id  # epochs and repeated rows stay apart
        examples[own] = msgspec.structs.replace(example, id=own)
        each = tuple(Score(example_id=own, metric=name, value=scores.get(name)) for name in names)
        rows.append(Row(example_id=own, key=f"{path.name}:{i}", answer=answer, scores=each))
    columns = {name: [row.scores[k] for row in rows] for k, name in enumerate(names)}
    plain = {name: Metric(name=name, rate=lambda *_: None) for name in names}
    return ImportedResult(
        list(examples.values()),
        Evaluation(
            model=model,
            model_digest=digest(model, str(path.name)),
            variant="imported",
            dataset_digest=dataset_digest(list(examples.values())),
            sampling=Sampling(),
            metrics=names,
            rows=tuple(rows),
            values={name: plain[name].value(column) for name, column in columns.items()},
            missing={name: sum(s.value is None for s in column) for name, column in columns.items()},
            asked=0,
            failed=sum(row.answer.finish_reason == "error" for row in rows),
            prompt_tokens=sum(row.answer.prompt_tokens for row in rows),
            completion_tokens=sum(row.answer.completion_tokens for row in rows),
            seconds=sum(row.answer.total_s or 0.0 for row in rows),
        ),
    )
