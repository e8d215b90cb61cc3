"""Judges: both orders, unreadable verdicts, their lean, and the correction by people's labels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tunesmith.core.errors import ConfigError, DataError
from tunesmith.core.types import Answer, Example, Message, Prompt, Sampling, example_id
from tunesmith.evaluate.judge import bias, corrected, pairwise, rubric
from tunesmith.models.base import OnAnswer


class Judge:
    """A judge that follows a rule over the two answers it is shown."""

    def __init__(self, rule: Callable[[str, str], str], name: str = "judge") -> None:
        self.name, self.digest, self._rule, self.asked = name, name, rule, 0

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        said = []
        for i, prompt in enumerate(prompts):
            shown = prompt.messages[-1].text
            parts = [shown.partition(f"[{name}]\n")[2].partition("\n[End of")[0] for name in ("Answer A", "Answer B")]
            self.asked += 1
            said.append(Answer(text=self._rule(*parts)))
            if on_answer:
                on_answer(i, said[-1])
        return said


def row(i: int) -> Example:
    messages = (Message(role="user", content=f"question {i}"), Message(role="assistant", content="right"))
    return Example(id=example_id(messages), messages=messages)


ROWS = [row(i) for i in range(4)]
A = [Answer(text=t) for t in ("long and good", "bad", "same", "good")]
B = [Answer(text=t) for t in ("bad", "good", "same", "worse")]


def honest(first: str, second: str) -> str:
    good = ("good" in first, "good" in second)
    return "I think [[B]] at first. " + {(True, False): "[[A]]", (False, True): "[[B]]"}.get(good, "[[C]]")


def test_pairwise_in_both_orders_and_from_the_cache(tmp_path: Path) -> None:
    judge = Judge(honest)
    verdicts = pairwise(judge, ROWS, A, B, cache=tmp_path / "judged.jsonl")
    assert [v.value for v in verdicts] == [0, 1, 0.5, 0]
    assert judge.asked == 8 - 1  # two equal answers make one prompt of both orders
    pairwise(judge, ROWS, A, B, cache=tmp_path / "judged.jsonl")
    assert judge.asked == 7


def test_a_judge_that_favours_slot_one_cancels_out_and_is_seen(tmp_path: Path) -> None:
    judge = Judge(lambda *_: "[[A]]", name="model-b")
    verdicts = pairwise(judge, ROWS, A, B, cache=tmp_path / "judged.jsonl")
    assert [v.value for v in verdicts] == [0.5] * 4
    lean = bias(judge, verdicts, A, B, ("model-a", "model-b"))
    assert (lean.slot_one, lean.flips, lean.longer, lean.own) == (0.5, 1.0, None, True)


def test_a_judge_that_favours_length_is_seen(tmp_path: Path) -> None:
    judge = Judge(lambda first, second: "[[C]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]")
    verdicts = pairwise(judge, ROWS, A, B, cache=tmp_path / "judged.jsonl")
    lean = bias(judge, verdicts, A, B, ("a", "b"))
    assert (lean.longer, lean.slot_one, lean.flips, lean.own) == (1.0, 0.0, 0.0, False)


def test_an_unreadable_verdict_is_missing(tmp_path: Path) -> None:
    judge = Judge(lambda first, second: "no idea" if "same" in first else honest(first, second))
    verdicts = pairwise(judge, ROWS, A, B, cache=tmp_path / "judged.jsonl")
    assert [v.value for v in verdicts] == [0, 1, None, 0]
    assert bias(judge, verdicts, A, B, ("a", "b")).missing == 1
    with pytest.raises(DataError, match="none of 1"):
        bias(judge, verdicts[2:3], A[2:3], B[2:3], ("a", "b"))


def test_rubric_is_a_metric_with_missing_values(tmp_path: Path) -> None:
    class Rater(Judge):
        def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
            said = [Answer(text="[[4]]" if "good" in p.messages[-1].text else "[[9]]") for p in prompts]
            for i, one in enumerate(said):
                if on_answer:
                    on_answer(i, one)
            return said

    m = rubric(Rater(honest), "Is it friendly?", cache=tmp_path / "rated.jsonl")
    scores = m.rows(ROWS, A)
    assert [s.value for s in scores] == [4, None, None, 4]
    assert m.value(scores) == 4
    with pytest.raises(ConfigError, match="a scale from 5 to 1"):
        rubric(Rater(honest), "x", cache=tmp_path / "x", low=5, high=1)


def test_correction_brings_a_lenient_judge_back(tmp_path: Path) -> None:
    draw = random.Random(1)
    truth = [float(draw.random() < 0.6) for _ in range(2000)]
    lenient = [t if t or draw.random() < 0.7 else 1.0 for t in truth]
    human = [t if i < 300 else None for i, t in enumerate(truth)]
    found = corrected(lenient, human)
    assert found.judged.low > 0.65
    assert found.corrected.low < 0.6 < found.corrected.high
    assert found.human == 300
    assert found.kappa is not None
    assert found.believed
    noise = corrected([float(draw.random() < 0.9) for _ in truth], human)
    assert not noise.believed
    assert noise.corrected.low < 0.6 < noise.corrected.high


def test_correction_leaves_out_what_the_judge_missed() -> None:
    values = [1.0, None, 0.0, 1.0, 0.0, 1.0]
    assert corrected(values, [1.0, 1.0, 0.0, 1.0, None, None]).human == 3
    with pytest.raises(ConfigError, match="6 judged, 1 human"):
        corrected(values, [1.0])
