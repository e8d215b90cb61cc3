"""An engine in one file: what answers in a batch, step by step, is served, streamed and cancelled like the local one; nobody asks for its
class."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tunesmith.core.types import Answer, Message, Prompt, Sampling
from tunesmith.deploy.engine import Answering, Overloaded
from tunesmith.models.base import Abilities, Asked, Piece, batching, passing, scoring
from tunesmith.models.echo import EchoModel

openai = pytest.importorskip("openai")


class Backwards:
    """An engine that says the last message backwards, a character a step; an id is the code of a character."""

    abilities = Abilities(batches=True)
    vocabulary = 1 << 16

    def __init__(self, name: str, key: str = "one") -> None:
        self.name, self.digest, self.batch_key = name, f"backwards:{key}", key
        self.batches: list[Batch] = []

    def encode(self, asked: Prompt | str) -> list[int]:
        return [ord(letter) for letter in (asked if isinstance(asked, str) else asked.messages[-1].text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def answer(self, prompts, sampling: Sampling, on_answer=None) -> list[Answer]:
        return [Answer(text=prompt.messages[-1].text[::-1]) for prompt in prompts]

    def batch(self) -> Batch:
        self.batches.append(Batch())
        return self.batches[-1]


class Batch:
    """Its rows, by number: what is asked, and what was said so far."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Asked, str]] = {}
        self.most, self.numbers = 0, 0
        self.cache_use = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.rows)

    @property
    def load(self) -> tuple[int, int]:
        return len(self.rows), 0

    def add(self, asked: Asked) -> int:
        if not asked.ids:
            raise ValueError("nothing to say backwards")  # no engine should, and some will
        self.numbers += 1
        self.rows[self.numbers] = (asked, "")
        return self.numbers

    def cancel(self, number: int) -> None:
        self.rows.pop(number, None)

    def step(self) -> list[tuple[int, Piece]]:
        self.most, pieces = max(self.most, len(self.rows)), []
        for number, (asked, said) in list(self.rows.items()):
            letter = chr(asked.ids[-1 - len(said)])
            self.rows[number] = (asked, said + letter)
            whole = len(said) + 1 in (len(asked.ids), asked.sampling.max_tokens)
            answer = Answer(text=said + letter, prompt_tokens=len(asked.ids), completion_tokens=len(said) + 1) if whole else None
            if whole:
                del self.rows[number]
            pieces.append((number, Piece(letter, (), answer)))
        return pieces


@pytest.fixture(scope="module")
def served():
    from tunesmith.api.app import create_app, running

    models = [Backwards("a"), Backwards("b"), Backwards("c", key="other")]
    with running(create_app({model.name: model for model in models} | {"echo": EchoModel()})) as url:
        yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600), models


def ask(client, model: str, words: str, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": words}], **more)


def test_it_is_answered_streamed_and_counted(served):
    client, _ = served
    whole = ask(client, "a", "drawer")
    assert whole.choices[0].message.content == "reward"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (6, 6)
    pieces = [chunk.choices[0].delta.content for chunk in ask(client, "b", "drawer", stream=True) if chunk.choices[0].delta.content]
    assert pieces == list("reward")
    assert client.completions.create(model="a", prompt=[115, 116, 97, 114], max_tokens=9).choices[0].text == "rats"
    assert len(ask(client, "a", "ab", n=3).choices) == 3


def test_a_row_that_an_engine_does_not_take_ends_alone(served):
    client, _ = served
    for _ in range(5):  # on one connection, which is as good afterwards as before
        with pytest.raises(openai.InternalServerError) as told:
            ask(client, "a", "")
        assert told.value.request_id
    assert ask(client, "b", "drawer").choices[0].message.content == "reward"


def test_siblings_share_a_batch_and_others_have_their_own(served):
    client, (first, second, other) = served
    for name in ("a", "b", "c"):
        ask(client, name, "x")
    assert len(first.batches) + len(second.batches) == 1
    assert len(other.batches) == 1


def test_what_it_cannot_do_is_refused(served):
    client, _ = served
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be held to a form of answer"):
        ask(client, "a", "drawer", response_format=form)
    assert batching(EchoModel()) is scoring(EchoModel()) is passing(EchoModel()) is None
    assert scoring(Backwards("x")) is passing(Backwards("x")) is None


def test_nobody_asks_for_the_class_of_a_model():
    asks = re.compile(r"isinstance\([^)]*\b(LocalModel|OpenAIModel|Upstream|Encoder|EchoModel|LazyModel)\b")
    source = Path(__file__).resolve().parent.parent / "src"
    assert [str(file) for file in sorted(source.rglob("*.py")) if asks.search(file.read_text("utf-8"))] == []


class Held(EchoModel):
    """Answers when it is let, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("held")
        self.let, self.asked = threading.Event(), list[str]()

    def answer(self, prompts, sampling: Sampling, on_answer=None) -> list[Answer]:
        self.asked += [prompt.messages[-1].text for prompt in prompts]
        self.let.wait()
        return super().answer(prompts, sampling, on_answer)


class HeldStep(Backwards):
    """An engine in whose first step nothing else is taken."""

    def __init__(self) -> None:
        super().__init__("held step", "held step")
        self.let, self.inside = threading.Event(), threading.Event()

    def batch(self) -> Batch:
        made, step = super().batch(), Batch.step

        def held() -> list[tuple[int, Piece]]:
            self.inside.set()
            self.let.wait()
            return step(made)

        made.step = held  # type: ignore[method-assign]
        return made


def asked(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


def test_no_more_wait_for_a_whole_answer_than_may_and_who_left_is_not_asked():
    async def run() -> None:
        model, answering, draw = Held(), Answering(max_waiting=2, threads=1), Sampling(max_tokens=4)
        try:
            (first,) = await answering.ask(model, asked("first"), draw)
            while not model.asked:
                await asyncio.sleep(0.01)
            (left,) = await answering.ask(model, asked("left"), draw)
            with pytest.raises(Overloaded):
                await answering.ask(model, asked("two at once"), draw, 2)
            (last,) = await answering.ask(model, asked("last"), draw)  # the one of the two that had room was cancelled
            with pytest.raises(Overloaded):
                await answering.ask(model, asked("too much"), draw)
            assert answering.load()[1] == 2
            left.cancel()
            left.cancel()
            assert answering.load()[1] == 1
            model.let.set()
            await first.whole()
            await last.whole()
            assert (model.asked, answering.load()[1]) == (["first", "last"], 0)
        finally:
            model.let.set()
            answering.close()

    asyncio.run(run())


def test_what_comes_within_a_step_waits_too():
    async def run() -> None:
        model, answering, draw = HeldStep(), Answering(max_waiting=3), Sampling(max_tokens=4)
        tasks = [asyncio.ensure_future(answering.ask(model, asked("ab"), draw))]
        try:
            while not model.inside.is_set():
                await asyncio.sleep(0.01)
            tasks += [asyncio.ensure_future(answering.ask(model, asked("ab"), draw)) for _ in range(12)]
            while sum(task.done() for task in tasks[1:]) < 12 - 3:  # all have come before the step ends
                await asyncio.sleep(0.01)
            refused = [task for task in tasks[1:] if task.done()]
            assert all(isinstance(task.exception(), Overloaded) for task in refused)
            model.let.set()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(end, Overloaded) for end in ends) == 12 - 3
        finally:
            model.let.set()
            answering.close()

    asyncio.run(run())
