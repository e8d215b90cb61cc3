"""OpenAI's graders: a sample and its item in, a reward out; knows nothing about jobs, HTTP or who runs the models.

Templates read `item` and `sample` only: `{{ item.answer }}`, `{{ sample.output_text }}`, `{{ sample.output_json.x }}`. What goes wrong
while grading one sample is part of the result (`errors`), with reward 0; only a grader that cannot be is an exception.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from tunesmith.core.errors import UsageError
from tunesmith.core.json_text import json_value
from tunesmith.core.load import need
from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.evaluate.formula import Formula, FormulaError
from tunesmith.evaluate.grader_template import TooLong, filled, parts, path_of
from tunesmith.evaluate.sandbox import boundary, run_python

AskModel = Callable[[str, Prompt, Sampling], Answer]
Similarity = Literal["fuzzy_match", "bleu", "gleu", "meteor", "cosine", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]
MAX_SOURCE_BYTES, MAX_GRADERS = 256_000, 50
_COMPARED = 4_000_000_000  # characters of one text times those of the other, for a measure of their likeness
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class _Grader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    name: str


class StringCheck(_Grader, frozen=True, tag="string_check"):
    """1 when `input` and `reference` stand in the relation: eq, ne, like (input contains reference), ilike (whatever the case)."""

    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Grader, frozen=True, tag="text_similarity"):
    """How alike `input` and `reference` are, 0 to 1, by `evaluation_metric`. meteor and cosine need data that is not installed."""

    input: str
    reference: str
    evaluation_metric: Similarity


class PythonGrader(_Grader, frozen=True, tag="python"):
    """`source` defines `grade(sample, item) -> float`, run in the sandbox."""

    source: str
    image_tag: str | None = None


class _Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Any
    type: Literal["message"] = "message"


class _Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int | None = None
    top_p: float | None = None
    temperature: float | None = None
    max_completions_tokens: int | None = None


class ScoreModel(_Grader, frozen=True, tag="score_model"):
    """A model gives a number within `range` (0 to 1 when not given): the `result` of a JSON object, else the last number it says."""

    model: str
    input: list[_Item]
    range: tuple[float, float] | None = None
    sampling_params: _Params = _Params()


class LabelModel(_Grader, frozen=True, tag="label_model"):
    """A model gives one of `labels`; 1 when it is among `passing_labels`. Only inside a multi grader."""

    model: str
    input: list[_Item]
    labels: list[str]
    passing_labels: list[str]


Single = StringCheck | TextSimilarity | PythonGrader | ScoreModel | LabelModel


class Multi(_Grader, frozen=True, tag="multi"):
    """A formula over the rewards of other graders, by their names (a map's keys, else the graders' own names)."""

    graders: Any
    calculate_output: str

    def parts(self) -> dict[str, Single]:
        """The graders by name: OpenAI's documents show one, an array and a map."""
        given = self.graders
        if isinstance(given, dict) and "type" not in given:
            return {name: msgspec.convert(single, Single) for name, single in given.items()}
        singles = [msgspec.convert(single, Single) for single in (given if isinstance(given, list) else [given])]
        return {single.name: single for single in singles}


Grader = StringCheck | TextSimilarity | PythonGrader | ScoreModel | Multi


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """What a grader said of one sample. `errors` has OpenAI's keys that apply; `tokens` counts what grading models used, by model."""

    reward: float
    errors: dict[str, str | bool] = {}
    sub_rewards: dict[str, float] = {}
    tokens: dict[str, int] = {}
    seconds: float = 0.0


class GradeError(Exception):
    """A sample that could not be graded: OpenAI's `key` for the reason and its details."""

    def __init__(self, key: str, details: str = "") -> None:
        self.key, self.details = key, details
        super().__init__(f"{key}: {details}")


def parse(tree: Any, *, python: bool = False) -> Grader:
    """A typed grader of its JSON. Raises UsageError with the place and the fault; python graders only when they are allowed (`python`)."""
    try:
        grader: Grader = msgspec.convert(tree, Grader)
        parts: list[tuple[str, Any]] = list(grader.parts().items()) if isinstance(grader, Multi) else [(grader.name, grader)]
    except msgspec.ValidationError as error:
        raise UsageError(f"the grader is not valid: {error}", where="grader") from error
    if not 1 <= len(parts) <= MAX_GRADERS:
        raise UsageError(f"a multi grader has {len(parts)} graders", where="grader.graders", allowed=f"1 to {MAX_GRADERS}")
    if isinstance(grader, Multi):
        try:
            Formula(grader.calculate_output, {name for name, _ in parts})
        except FormulaError as error:
            raise UsageError(str(error), where="grader.calculate_output") from error
    for name, part in parts:
        _check(name, part, python)
    return grader


def _check(name: str, grader: Any, python: bool) -> None:
    if isinstance(grader, PythonGrader):
        if not python:
            raise UsageError(f"'{name}' is a python grader, and running Python is off", remedy="allow it in the server's configuration")
        boundary()
        if len(grader.source.encode()) > MAX_SOURCE_BYTES:
            raise UsageError(f"the source of '{name}' has {len(grader.source.encode())} bytes", allowed=f"{MAX_SOURCE_BYTES}")
        try:
            compile(grader.source, "grader", "exec")
        except (SyntaxError, ValueError) as error:
            raise UsageError(f"the source of '{name}' does not compile: {error}", where="grader.source") from error
    if isinstance(grader, TextSimilarity) and grader.evaluation_metric in ("meteor", "cosine"):
        raise UsageError(
            f"'{grader.evaluation_metric}' is not served here",
            where=f"grader '{name}'",
            allowed="fuzzy_match, bleu, gleu, rouge_1 to rouge_5, rouge_l",
        )
    if isinstance(grader, LabelModel) and not set(grader.passing_labels) <= set(grader.labels):
        raise UsageError(f"passing_labels of '{name}' are not all labels", where=f"grader '{name}'", allowed=", ".join(grader.labels))
    for text in _templates(grader):
        for _, place in parts(text):
            if place is not None and path_of(place) is None:
                known = "item.KEY, sample.output_text, sample.output_json.KEY"
                raise UsageError(f"'{{{{ {place[:200]} }}}}' names nothing", where=f"grader '{name}'", allowed=known)


def _templates(grader: Any) -> list[str]:
    if isinstance(grader, (StringCheck, TextSimilarity)):
        return [grader.input, grader.reference]
    return [_content(item.content) for item in grader.input] if isinstance(grader, (ScoreModel, LabelModel)) else []


def sample_of(text: str) -> dict[str, Any]:
    """What templates call `sample`: the output's text, and its JSON value when it is JSON."""
    try:
        return {"output_text": text, "output_json": json_value(text)}
    except ValueError:
        return {"output_text": text}


def run(grader: Grader, text: str, item: Mapping[str, Any], ask: AskModel | None = None) -> Grade:
    """Grade one sample's `text` against its `item`. `ask` answers for score_model and label_model graders."""
    started = time.perf_counter()
    work = _Work({"sample": sample_of(text), "item": item}, ask)
    try:
        if isinstance(grader, Multi):
            for name, part in grader.parts().items():
                work.rewards[name] = work.reward(part)
            reward = Formula(grader.calculate_output, work.rewards.keys())(work.rewards)
        else:
            reward = work.reward(grader)
        errors: dict[str, str | bool] = {}
    except GradeError as error:
        reward, errors = 0.0, {error.key: True}
        if error.key in _DETAILED:
            errors[_DETAILED[error.key]] = error.details
    except FormulaError:
        reward, errors = 0.0, {"formula_parse_error": True}
    except RecursionError:  # a sample or an item that is nested too deeply to be written again
        reward, errors = 0.0, {"other_error": True}
    return Grade(reward=reward, errors=errors, sub_rewards=work.rewards, tokens=dict(work.tokens), seconds=time.perf_counter() - started)


_DETAILED = {
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}


class _Work:
    """Grading of one sample."""

    def __init__(self, names: Mapping[str, Any], ask: AskModel | None) -> None:
        self.names, self.ask = names, ask
        self.rewards: dict[str, float] = {}
        self.tokens: Counter[str] = Counter()

    def reward(self, grader: Single | Grader) -> float:
        """The reward of one grader that is no multi grader. Raises GradeError."""
        if isinstance(grader, StringCheck):
            return string_check(self.render(grader.input), self.render(grader.reference), grader.operation)
        if isinstance(grader, TextSimilarity):
            return similarity(self.render(grader.input), self.render(grader.reference), grader.evaluation_metric)
        if isinstance(grader, PythonGrader):
            return python_grade(grader.source, self.names["sample"], self.names["item"])
        if isinstance(grader, ScoreModel):
            return self._score(grader)
        assert isinstance(grader, LabelModel)
        answer = self._said(grader.model, grader.input, Sampling(max_tokens=256))
        places = [(answer.rfind(label), label) for label in grader.labels if label in answer]
        if not places:
            raise GradeError("model_grader_parse_error")
        return float(max(places)[1] in grader.passing_labels)

    def _score(self, grader: ScoreModel) -> float:
        params = grader.sampling_params
        sampling = Sampling(
            max_tokens=params.max_completions_tokens or 256,
            temperature=params.temperature or 0.0,
            top_p=params.top_p or 1.0,
            seed=params.seed,
        )
        answer = self._said(grader.model, grader.input, sampling)
        low, high = grader.range or (0.0, 1.0)
        value = _number(answer)
        if value is None or not low <= value <= high:
            raise GradeError("model_grader_parse_error")
        return value

    def _said(self, model: str, items: list[_Item], sampling: Sampling) -> str:
        if self.ask is None:
            raise GradeError("model_grader_server_error", f"no model '{model}' can be asked here")
        messages = tuple(Message(role=item.role, content=self.render(_content(item.content))) for item in items)
        answer = self.ask(model, Prompt(messages=messages), sampling)
        self.tokens[model] += answer.prompt_tokens + answer.completion_tokens
        return answer.text

    def render(self, template: str) -> str:
        """The template with its places filled. Raises GradeError for a name that the sample or the item does not have."""
        try:
            return filled(template, self._value)
        except TooLong as error:
            raise GradeError("truncated_observation_error") from error

    def _value(self, path: str) -> str:
        named = path_of(path)
        if named is None:
            raise GradeError("invalid_variable_error", path)
        value = self.names[named[0]]
        for step in named[1]:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError) as error:
                wrong = "sample_parse_error" if path.startswith("sample.output_json") else "invalid_variable_error"
                raise GradeError(wrong, path) from error
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_content(part) for part in content)
    return str(content.get("text", "")) if isinstance(content, dict) else str(content)


def _number(text: str) -> float | None:
    try:
        tree = json_value(text)
        return float(tree["result"] if isinstance(tree, dict) else tree)
    except (ValueError, KeyError, TypeError):
        numbers = _NUMBER.findall(text)
        return float(numbers[-1]) if numbers else None


def string_check(text: str, reference: str, operation: str) -> float:
    """1 or 0 by `operation`: eq, ne, like (contains), ilike (contains, whatever the case)."""
    if operation in ("eq", "ne"):
        return float((text == reference) == (operation == "eq"))
    return float(reference in text if operation == "like" else reference.casefold() in text.casefold())


def similarity(text: str, reference: str, metric: str) -> float:
    """How alike two texts are, 0 to 1.

    fuzzy_match is rapidfuzz's ratio (normalised indel distance); bleu the sentence BLEU of Papineni 2002 with smoothing; gleu Google's
    sentence score, the smaller of n-gram precision and recall for n = 1 to 4 (Wu et al. 2016, arXiv:1609.08144); rouge Lin 2004, F1.
    """
    from tunesmith.core.words import words
    from tunesmith.evaluate.metrics.overlap import rouge_l, rouge_n
    from tunesmith.evaluate.metrics.translation import bleu_statistics, bleu_value

    if len(text) * len(reference) > _COMPARED:
        raise GradeError("truncated_observation_error")
    if metric == "fuzzy_match":
        return float(need("rapidfuzz.fuzz", extra="eval").ratio(text, reference)) / 100
    if metric == "bleu":
        import numpy as np

        return float(bleu_value(np.array(bleu_statistics(text, [reference])), effective=True)) / 100
    answered, wanted = words(text), words(reference)
    if metric == "gleu":
        answered, wanted = tuple(text.split()), tuple(reference.split())
        counts = [rouge_n(wanted, answered, n) for n in range(1, 5)]
        shared, of_wanted, of_said = (sum(column) for column in zip(*counts, strict=True))
        return float(shared / max(of_wanted, of_said, 1))
    shared, of_wanted, of_said = rouge_l(wanted, answered) if metric == "rouge_l" else rouge_n(wanted, answered, int(metric[-1]))
    return 2 * shared / (of_wanted + of_said) if shared else 0.0


_HARNESS = """
import json as _json
_sample, _item = _json.loads({sample!r}), _json.loads({item!r})
_result = grade(_sample, _item)
if isinstance(_result, bool) or not isinstance(_result, (int, float)) or _result != _result:
    raise TypeError("grade() gave %r, not a number" % (_result,))
print("\\n" + _json.dumps(float(_result)))
"""


def python_grade(source: str, sample: Mapping[str, Any], item: Mapping[str, Any], timeout_s: float = 10.0) -> float:
    """What the source's `grade(sample, item)` returns, from the sandbox. Raises GradeError with the end of its output."""
    program = source + "\n" + _HARNESS.format(sample=json.dumps(sample), item=json.dumps(item))
    ran = run_python(program, timeout_s=timeout_s)
    if not ran.finished:
        raise GradeError("python_grader_runtime_error", "the time was up" if ran.timed_out else ran.output[-1000:])
    try:
        return float(json.loads(ran.output.rstrip("\n").rpartition("\n")[2]))
    except ValueError as error:
        raise GradeError("python_grader_runtime_error", "grade() printed after its end") from error
