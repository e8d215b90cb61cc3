"""A model that looks passages up for the last question, has them before it when it answers, and tells which they were. Knows nothing about
documents and servers.

The passages stand numbered in the user's turn, the best first; as many of the worst are left out as the model's context has no room for,
and counted. What the inner model can do beyond whole prompts (`batches`, a grammar) is done with the prompt that `ground` makes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tunesmith.core.errors import ContextExceeded, UsageError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import PLACES, How, check_template
from tunesmith.core.types import Answer, Message, PassageRef, Prompt, Sampling, Sources, digest
from tunesmith.models.base import Abilities, GroundedPrompt, Model, OnAnswer, abilities, batching, loaded, ref_of, route_of
from tunesmith.models.passage_index import Hit, PassageIndex

if TYPE_CHECKING:
    from tunesmith.models.decode_check import DecodeChoice

TEMPLATE = """Answer the question from the passages. After each statement write the number of its passage in brackets, such as [1]. \
If the passages do not say it, say so.

{passages}

Question: {question}"""
_NOTHING = "(no passage was found)"
_ANSWER_SHARE = 4  # of a context at most a quarter is left free for the answer


@dataclass
class GroundedModel:
    """`model` with the `k` best passages of `index`, looked up as `how` says, in every prompt. `template` has the places {passages} and
    {question} once each; with `turns` solved rows stand before the conversation as turns of their own, the best last."""

    model: Model
    index: PassageIndex
    k: int = 4
    how: How = "fused"
    template: str = TEMPLATE
    turns: bool = False

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.turns and any(passage.solved is None for passage in self.index.passages):
            raise UsageError("only solved rows can stand as turns", where="retrieval.turns", allowed="an index of rows alone")
        self.index.search([], self.k, self.how)  # refuses what the index cannot do

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name

    @property
    def digest(self) -> str:
        """Of the model, the index, and how it is asked."""
        form = "turns" if self.turns else self.template
        return digest("grounded", self.model.digest, self.index.digest, self.k, self.how, form)

    @property
    def abilities(self) -> Abilities:
        """It grounds prompts; the model's forms of answers hold, but a text alone can be neither scored nor passed on."""
        able = abilities(self.model)
        return Abilities(schema=able.schema, grammar=able.grammar, grounds=True)

    @property
    def ref(self) -> ModelRef | None:
        """The model's weights."""
        return ref_of(self.model)

    @property
    def route(self) -> DecodeChoice | None:
        """The model's."""
        return route_of(self.model)

    def ground(
        self, prompts: Sequence[Prompt], sampling: Sampling, hidden: Sequence[Collection[str]] | None = None
    ) -> list[GroundedPrompt]:
        """Each prompt with passages before its last question. One that asks nothing stays as it is. `hidden` are, for each prompt, the
        ids of passages that it must not see, as a training row not its own answer."""
        asked = [(i, at) for i, prompt in enumerate(prompts) if (at := _last_question(prompt)) is not None]
        more = max(map(len, hidden), default=0) if hidden else 0
        hits = self.index.search([prompts[i].messages[at].text for i, at in asked], self.k + more, self.how)
        if hidden is not None:
            seen = [[hit for hit in each if hit.passage.id not in hidden[i]] for (i, _), each in zip(asked, hits, strict=True)]
            hits = [each[: self.k] for each in seen]
        made = [GroundedPrompt(prompt, Sources(index=self.index.digest)) for prompt in prompts]
        for (i, at), each in zip(asked, hits, strict=True):
            made[i] = self._fitted(prompts[i], at, each, sampling)
        return made

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """See `Model.answer`; each answer has its `sources`."""
        started = time.perf_counter()
        made = self.ground(prompts, sampling)
        took_s = time.perf_counter() - started

        def tell(i: int, answer: Answer) -> None:
            if on_answer is not None:
                on_answer(i, made[i].complete(answer, took_s))

        answers = self.model.answer([each.prompt for each in made], sampling, tell)
        return [each.complete(answer, took_s) for answer, each in zip(answers, made, strict=True)]

    def _fitted(self, prompt: Prompt, at: int, hits: Sequence[Hit], sampling: Sampling) -> GroundedPrompt:
        """The prompt with as many of the hits as fit; where not even one does, as it was."""
        for count in range(len(hits), -1 if not hits else 0, -1):
            whole = self._with(prompt, at, hits[:count])
            if self._fits(whole, sampling):
                return GroundedPrompt(whole, self._sources(hits[:count], len(hits) - count))
        return GroundedPrompt(prompt, self._sources((), len(hits)))

    def _with(self, prompt: Prompt, at: int, hits: Sequence[Hit]) -> Prompt:
        if self.turns:
            return _after(prompt, hits)
        passages = "\n\n".join(_shown(number, hit) for number, hit in enumerate(hits, start=1)) or _NOTHING
        parts = {"passages": passages, "question": prompt.messages[at].text}
        words = PLACES.sub(lambda place: parts[place[1]], self.template)
        turn = msgspec.structs.replace(prompt.messages[at], content=words)
        messages: tuple[Message, ...] = (*prompt.messages[:at], turn, *prompt.messages[at + 1 :])
        return msgspec.structs.replace(prompt, messages=messages)

    def _fits(self, prompt: Prompt, sampling: Sampling) -> bool:
        """Whether the prompt leaves room for the answer; of a model elsewhere nobody knows."""
        inner = loaded(self.model)
        engine, context = batching(inner), getattr(inner, "context", None)
        if engine is None or context is None:
            return True
        try:
            return len(engine.encode(prompt)) + min(sampling.max_tokens, context // _ANSWER_SHARE) <= context
        except ContextExceeded:
            return False

    def _sources(self, hits: Sequence[Hit], dropped: int) -> Sources:
        passages = tuple(
            PassageRef(
                number=number,
                id=hit.passage.id,
                source=hit.passage.source,
                page=hit.passage.page,
                part=hit.passage.part,
                start=hit.passage.start,
                end=hit.passage.end,
                score=hit.score,
            )
            for number, hit in enumerate(hits, start=1)
        )
        return Sources(index=self.index.digest, passages=passages, dropped=dropped)


def _last_question(prompt: Prompt) -> int | None:
    """Where the last user's turn stands; None where there is none with words."""
    return next((i for i in reversed(range(len(prompt.messages))) if prompt.messages[i].role == "user" and prompt.messages[i].text), None)


def _after(prompt: Prompt, hits: Sequence[Hit]) -> Prompt:
    """The conversation after the solved rows, the best last; leading instructions stay in front."""
    pairs = [pair for hit in reversed(hits) if (pair := hit.passage.solved) is not None]
    shots = [turn for asked, said in pairs for turn in (Message(role="user", content=asked), Message(role="assistant", content=said))]
    cut = next((i for i, message in enumerate(prompt.messages) if message.role not in ("system", "developer")), len(prompt.messages))
    return msgspec.structs.replace(prompt, messages=(*prompt.messages[:cut], *shots, *prompt.messages[cut:]))


def _shown(number: int, hit: Hit) -> str:
    passage = hit.passage
    place = "" if passage.found_by else f" {passage.place}" + (f": {passage.heading}" if passage.heading else "")
    return f"[{number}]{place}\n{passage.text}"
