"""Teachers that stop, that cannot be held to a schema, or that are cut short: nothing paid is lost, and each row that is missing has a reason."""

import json

import pytest

from tunesmith.core.errors import SourceUnavailable, UsageError
from tunesmith.core.types import Answer, Example, Message, Sampling, example_id
from tunesmith.data import synth
from tunesmith.flow.datasets.synth import RememberingTeacher

TURNS = (Message(role="user", content="when?"), Message(role="assistant", content="at nine"))
SEEDS = [Example(id=example_id(TURNS), messages=TURNS, origin="f:1")]


class Teacher:
    """Answers by counting, and is gone after `lives` answers; `words` only: it cannot be held to a schema."""

    name, digest = "counting", "1"

    def __init__(self, lives=99, words=False, finish="stop"):
        self.said, self.lives, self.words, self.finish = 0, lives, words, finish

    def answer(self, prompts, sampling, on_answer=None):
        if self.words and any(prompt.response_schema is not None for prompt in prompts):
            raise UsageError("a local model cannot be held to a JSON Schema")
        answers = []
        for i, _ in enumerate(prompts):
            if self.said == self.lives:
                raise SourceUnavailable("'counting' does not answer", where="http://127.0.0.1")
            self.said += 1
            text = json.dumps({"question": f"what is {self.said}{self.said} and {self.said * 7}?", "answer": str(self.said)})
            answers.append(Answer(text=text if self.finish == "stop" else text[:9], finish_reason=self.finish, prompt_tokens=10))
            if on_answer is not None:
                on_answer(i, answers[-1])
        return answers


def requests(n):
    return synth.from_documents([(f"{i}.txt", f"text {i}") for i in range(n)], each=1)


def test_a_teacher_that_stops_is_not_asked_again_for_what_it_said(tmp_path):
    prompts = [one.prompt for one in requests(6)]
    with pytest.raises(SourceUnavailable, match="the same command goes on from there"):
        RememberingTeacher(Teacher(lives=4), tmp_path / "a.jsonl").answer(prompts, Sampling())
    second = Teacher()
    second.said = 4
    answers = RememberingTeacher(second, tmp_path / "a.jsonl").answer(prompts, Sampling())
    assert second.said == 6
    assert [json.loads(answer.text)["answer"] for answer in answers] == ["1", "2", "3", "4", "5", "6"]
    assert [answer.prompt_tokens for answer in answers] == [0, 0, 0, 0, 10, 10], "what was paid before costs nothing now"


def test_a_model_without_schemas_teaches_too():
    made = synth.make(synth.from_seeds(SEEDS, 3, synth.Synth()), Teacher(words=True), synth.Synth(), seeds=SEEDS)
    assert len(made.rows) == 3


def test_answers_that_were_cut_say_so():
    made = synth.make(synth.from_seeds(SEEDS, 2, synth.Synth()), Teacher(finish="length"), synth.Synth(), seeds=SEEDS)
    assert [reason for reason, _ in made.refused] == ["the answer was cut: give more --max_tokens"] * 2
