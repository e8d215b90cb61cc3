"""Evaluation runs: the cache, interruption, prompt variants, the sealed test's log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tunesmith.core.errors import ConfigError, StoreError
from tunesmith.core.types import Answer, Example, Message, Prompt, Sampling, example_id
from tunesmith.evaluate.metrics import metric
from tunesmith.evaluate.openings import open_sealed, openings
from tunesmith.evaluate.prompts import few_shot, instructed
from tunesmith.evaluate.run import evaluate, load_evaluation, replicates
from tunesmith.models.base import OnAnswer

GREEDY = Sampling()


class Ruled:
    """A model that answers by a rule, and remembers what it was asked."""

    def __init__(self, rule: Callable[[str], Answer], digest: str = "rule-1") -> None:
        self.name, self.digest, self._rule = "ruled", digest, rule
        self.asked: list[str] = []

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        answers = []
        for i, prompt in enumerate(prompts):
            self.asked.append(prompt.messages[-1].text)
            answers.append(self._rule(prompt.messages[-1].text))
            if on_answer:
                on_answer(i, answers[-1])
        return answers


def upper(text: str) -> Answer:
    return Answer(text=text.upper(), prompt_tokens=2, completion_tokens=1)


def row(question: str, reference: str, system: str = "", group: str | None = None) -> Example:
    head = (Message(role="system", content=system),) if system else ()
    messages = (*head, Message(role="user", content=question), Message(role="assistant", content=reference))
    return Example(id=example_id(messages), messages=messages, group=group)


ROWS = [row("a", "A"), row("b", "x"), row("a", "other"), row("c", "C")]
EXACT = [metric("exact_match"), metric("length")]


def test_rows_scores_values_and_cost(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = Ruled(upper)
    done = evaluate(model, ROWS, EXACT, sampling=GREEDY, out=tmp_path, on_progress=lambda *at: told.append(at))
    assert model.asked == ["a", "b", "c"]  # equal prompts are asked once
    assert [s.value for s in done.scores("exact_match")] == [1, 0, 0, 1]
    assert done.values == {"exact_match": 0.5, "length": 1.0}
    assert (done.asked, done.failed, done.prompt_tokens, done.completion_tokens) == (3, 0, 8, 4)
    assert told[0] == (0, 4)
    assert told[-1] == (4, 4)
    assert load_evaluation(tmp_path) == done


def test_a_second_run_asks_nothing_and_changes_ask_again(tmp_path: Path) -> None:
    first = evaluate(Ruled(upper), ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    model = Ruled(upper)
    again = evaluate(model, ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    assert model.asked == []
    assert again.rows == first.rows
    assert again.seconds == first.seconds
    for changed in (
        {"sampling": Sampling(max_tokens=9)},
        {"sampling": GREEDY, "prompt_variant": instructed("Shout.")},
    ):
        evaluate(model, ROWS, EXACT, out=tmp_path, **changed)  # type: ignore[arg-type]
    evaluate(newer := Ruled(upper, digest="rule-2"), ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    assert len(model.asked) == 6
    assert len(newer.asked) == 3


def test_a_half_written_last_line_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    evaluate(Ruled(upper), ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    kept = tmp_path / "answers.jsonl"
    kept.write_bytes(kept.read_bytes()[:-20])
    model = Ruled(upper)
    assert evaluate(model, ROWS, EXACT, sampling=GREEDY, out=tmp_path).values["exact_match"] == 0.5
    assert model.asked == ["c"]
    model.asked.clear()
    evaluate(model, ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    assert model.asked == []


def test_a_failed_answer_is_missing_and_asked_again(tmp_path: Path) -> None:
    flaky = Ruled(lambda text: Answer(text="", finish_reason="error") if text == "b" else upper(text))
    done = evaluate(flaky, ROWS, EXACT, sampling=GREEDY, out=tmp_path)
    assert (done.failed, done.missing) == (1, {"exact_match": 1, "length": 1})
    assert done.values["exact_match"] == pytest.approx(2 / 3)
    healed = Ruled(upper)
    assert evaluate(healed, ROWS, EXACT, sampling=GREEDY, out=tmp_path).failed == 0
    assert healed.asked == ["b"]


def test_a_shared_cache_serves_another_evaluation(tmp_path: Path) -> None:
    cache = tmp_path / "answers.jsonl"
    evaluate(Ruled(upper), ROWS, EXACT, sampling=GREEDY, out=tmp_path / "one", cache=cache)
    model = Ruled(upper)
    evaluate(model, [*ROWS, row("d", "D")], EXACT, sampling=GREEDY, out=tmp_path / "two", cache=cache)
    assert model.asked == ["d"]


def test_a_thousand_rows_come_from_the_cache_unasked(tmp_path: Path) -> None:
    rows = [row(f"{i} " + "word " * 200, f"{i}") for i in range(1000)]
    variant = few_shot(rows[:50], 5)
    done = evaluate(Ruled(upper), rows, EXACT, sampling=GREEDY, prompt_variant=variant, out=tmp_path)
    again = Ruled(upper)
    assert evaluate(again, rows, EXACT, sampling=GREEDY, prompt_variant=variant, out=tmp_path).values == done.values
    assert again.asked == []


def test_seeds_are_replicates(tmp_path: Path) -> None:
    model = Ruled(upper)
    warm = Sampling(temperature=1.0)
    done = replicates(model, ROWS, EXACT, sampling=warm, seeds=[1, 2], out=tmp_path)
    assert [one.sampling.seed for one in done] == [1, 2]
    assert len(model.asked) == 6
    replicates(model, ROWS, EXACT, sampling=warm, seeds=[2, 1, 3], out=tmp_path)
    assert len(model.asked) == 9
    for sampling, seeds in ((GREEDY, [1]), (warm, [1, 1]), (warm, [])):
        with pytest.raises(ConfigError, match="at temperature"):
            replicates(model, ROWS, EXACT, sampling=sampling, seeds=seeds, out=tmp_path)


def test_every_kind_of_score_is_kept_and_read_back(tmp_path: Path) -> None:
    metrics = [metric(name) for name in ("bleu", "chrf", "entity_f1", "macro_f1", "json_fields", "latency")]
    done = evaluate(Ruled(upper), ROWS, metrics, sampling=GREEDY, out=tmp_path)
    again = load_evaluation(tmp_path)
    assert again == done
    for m in metrics:
        assert m.value(again.scores(m.name)) == done.values[m.name]


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_eval_run import EXACT, GREEDY, Ruled, evaluate, row, upper
def slow(text):
    with open({log!r}, "a") as log:
        log.write(text + "\\n")
    time.sleep(0.01)
    return upper(text)
evaluate(Ruled(slow), [row(f"q{{i}}", f"Q{{i}}") for i in range(200)], EXACT, sampling=GREEDY, out=Path({out!r}))
"""


@pytest.mark.slow
def test_kill_9_asks_nothing_answered_twice(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    script = KILLED.format(tests=str(Path(__file__).parent), log=str(log), out=str(tmp_path / "out"))
    rounds = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", script])
        if rounds < 3:
            seen = log.read_text().count("\n") if log.exists() else 0
            while (log.read_text().count("\n") if log.exists() else 0) < seen + 20 and process.poll() is None:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        rounds += 1
        if process.returncode == 0:
            break
    asked = log.read_text().split()
    assert rounds == 4
    assert set(asked) == {f"q{i}" for i in range(200)}
    assert len(asked) <= 200 + 3  # the one answer in flight at each kill was never received
    assert load_evaluation(tmp_path / "out").values["exact_match"] == 1.0


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        evaluate(Ruled(upper), [], EXACT, sampling=GREEDY, out=tmp_path)
    with pytest.raises(ConfigError, match="each name once"):
        evaluate(Ruled(upper), ROWS, [EXACT[0], EXACT[0]], sampling=GREEDY, out=tmp_path)
    with pytest.raises(StoreError, match="no evaluation"):
        load_evaluation(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot keep answers"):
        evaluate(Ruled(upper), ROWS, EXACT, sampling=GREEDY, out=tmp_path / "file" / "out")
    with pytest.raises(ConfigError, match="was not measured"):
        evaluate(Ruled(upper), ROWS, EXACT, sampling=GREEDY, out=tmp_path).scores("rouge_l")


TRAIN = [
    row("the bank lends money", "1", system="S", group="g1"),
    row("cats like milk", "2", system="S", group="g2"),
    row("the bank lends much money", "3", system="S", group="g1"),
    row("dogs like cats", "4", system="S", group="g3"),
]


def test_random_shots_share_their_prefix() -> None:
    variant = few_shot(TRAIN, 2, seed=1)
    one, two = variant(row("q1", "?", system="S")), variant(row("q2", "?", system="S"))
    assert one.messages[:-1] == two.messages[:-1]
    assert [m.role for m in one.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert one.messages[-1].text == "q1"
    assert few_shot(TRAIN, 2, seed=1)(TRAIN[0]).messages != one.messages


def test_nearest_shots_are_alike_the_nearest_last() -> None:
    shown = few_shot(TRAIN, 2, by="nearest")(row("cats and dogs like milk", "?", system="S")).messages
    assert [m.text for m in shown if m.role == "assistant"] == ["4", "2"]


@pytest.mark.parametrize("by", ["random", "nearest"])
def test_no_row_is_shown_itself_or_its_group(by: str) -> None:
    for seed in range(4):
        shown = few_shot(TRAIN, 2, by=by, seed=seed)(TRAIN[0]).messages  # type: ignore[arg-type]
        assert {m.text for m in shown if m.role == "assistant"} == {"2", "4"}


def test_few_shot_refuses_too_many() -> None:
    with pytest.raises(ConfigError, match="9 shots from 4"):
        few_shot(TRAIN, 9)


def test_the_answer_is_never_in_the_prompt() -> None:
    for variant in (few_shot(TRAIN, 1), instructed("I"), few_shot(TRAIN, 1, by="nearest")):
        assert "SECRET" not in "".join(m.text for m in variant(row("q", "SECRET", system="S")).messages)


def test_openings_are_counted_and_kept(tmp_path: Path) -> None:
    log = tmp_path / "openings.jsonl"
    assert openings(log) == []
    assert open_sealed(log, "d1", who="ann", why="final report") == 1
    assert open_sealed(log, "d2", who="ann", why="other") == 1
    assert open_sealed(log, "d1", who="bob", why="again") == 2
    assert [(o.who, o.why) for o in openings(log, "d1")] == [("ann", "final report"), ("bob", "again")]
    with log.open("a") as file:
        file.write("scratched\n")
    with pytest.raises(StoreError, match=":4"):
        openings(log)
