"""What every model can do, whoever runs it, and what some can do besides; knows nothing about weights, servers or keys.

A `Model` answers whole prompts. What else it can do it says itself (`Abilities`), so that nobody asks which class it is: an engine that
brings a class with these few methods is served like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from msgspec.structs import replace

from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Answer, Prompt, Record, Sampling, Sources

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tunesmith.models.connection import Incoming
    from tunesmith.models.decode_check import DecodeChoice

OnAnswer = Callable[[int, Answer], None]


@runtime_checkable
class Model(Protocol):
    """Anything that answers.

    `name` is what people call it; `digest` changes whenever its answers could (weights, template, precision, prompt).
    """

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def answer(self, prompts: Sequence[Prompt], sampling: Sampling, on_answer: OnAnswer | None = None) -> list[Answer]:
        """One answer for each prompt, in the order of the prompts.

        `on_answer(index, answer)` is called as each one is finished, in any order, so that a caller can keep it at once.
        """
        ...


class Abilities(Record, frozen=True):
    """What a model can do besides answering whole prompts; a model tells it as its attribute `abilities`, and one that tells nothing
    can do nothing of it.

    `batches`: it is a `Batching` model. `schema`: its answers can be held to a JSON Schema; `grammar`: to any constraint, calls of tools
    among them. `scores`: it is a `Scoring` model. `passes`: it is a `Passing` model. `grounds`: it is a `Grounding` model.
    """

    batches: bool = False
    schema: bool = False
    grammar: bool = False
    scores: bool = False
    passes: bool = False
    grounds: bool = False


class Constraint(Record, frozen=True):
    """What an answer must be: JSON after a schema, or calls of one of `tools` (the API's tool objects), `several` at once or only one."""

    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    several: bool = True


def constraint_of(schema: dict[str, Any] | None, tools: Sequence[dict[str, Any]], *, several: bool = True) -> Constraint | None:
    """The constraint of a schema or of tools of which one must be called; None when there is neither."""
    if schema is None and not tools:
        return None
    return Constraint(schema=schema, tools=tuple(tools), several=several)


@dataclass(frozen=True, slots=True)
class Asked:
    """One row for a batch: who is asked, the prompt and its token ids, how to draw, which of the n answers to one prompt it is, since
    when it waits (`time.perf_counter`), what it is held to; `plain`: a text is continued, in which thoughts and calls are words."""

    model: Batching
    prompt: Prompt
    ids: Sequence[int]
    sampling: Sampling
    choice: int
    since: float
    constraint: Constraint | None = None
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words of an answer (or of the thoughts before it), the log-probabilities that came with them, and on the last piece the whole
    answer."""

    text: str
    logprobs: tuple[dict[str, Any], ...] = ()
    answer: Answer | None = None
    thoughts: str = ""


class Batch(Protocol):
    """Rows that are answered together, a step at a time. One thread owns it."""

    @property
    def busy(self) -> bool:
        """Whether a row is open."""
        ...

    @property
    def load(self) -> tuple[int, int]:
        """(rows being answered, rows waiting)."""
        ...

    @property
    def cache_use(self) -> float:
        """The share of its cache that is in use, 0 to 1."""
        ...

    def add(self, asked: Asked) -> int:
        """Take a row; returns its number. Raises TunesmithError for one that cannot be answered, and forgets it."""
        ...

    def step(self) -> list[tuple[int, Piece]]:
        """One step of every open row: what became certain, by the row's number. A row ends with the piece that has the whole answer."""
        ...

    def cancel(self, number: int) -> None:
        """Forget a row; nothing happens when it has ended."""
        ...


class Batching(Model, Protocol):
    """A model that answers token by token, in one batch with all models of the same `batch_key` (adapters on one base)."""

    @property
    def batch_key(self) -> Hashable: ...

    @property
    def vocabulary(self) -> int:
        """How many token ids there are."""
        ...

    def encode(self, asked: Prompt | str) -> list[int]:
        """The ids of a prompt by the model's template, or of a text as it is. Raises DataError, UsageError."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def batch(self) -> Batch:
        """A fresh batch for this model and its siblings."""
        ...


class Scoring(Model, Protocol):
    """A model that says how likely a text is."""

    def nll(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, int]]:
        """(summed negative log-likelihood in nats, scored tokens) of each row of (ids, mask); the ids with mask 1, never the first id."""
        ...

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[dict[str, Any]]:
        """Each id as the API's entry of log-probabilities (`token`, `logprob`, `bytes`, `top_logprobs` with the `top` likeliest in its
        place); the first, which nothing stands before, with `logprob` None."""
        ...


class Passing(Model, Protocol):
    """A model of another server, to which requests are passed as they came."""

    @property
    def waits_at(self) -> Hashable:
        """Where its requests wait: the same for models of the same server."""
        ...

    async def send(self, path: str, body: bytes) -> Incoming:
        """POST a body to `path` below /v1; the answer's headers have come. Raises OSError when there is no answer."""
        ...

    async def delete(self, path: str) -> int:
        """DELETE `path` below /v1; the status of the answer. Raises OSError when there is none."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class GroundedPrompt:
    """A prompt with the passages that were looked up for it, and which they are."""

    prompt: Prompt
    sources: Sources

    def complete(self, answer: Answer, took_s: float) -> Answer:
        """The answer with what was looked up for it, and with the time that this took: who asked has waited for it."""
        first, total = answer.first_token_s, answer.total_s
        return replace(
            answer,
            sources=self.sources,
            first_token_s=None if first is None else first + took_s,
            total_s=None if total is None else total + took_s,
        )


class Grounding(Model, Protocol):
    """A model that looks something up for its prompts, which another one then answers."""

    @property
    def model(self) -> Model:
        """Who answers."""
        ...

    def ground(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[GroundedPrompt]:
        """The prompts as that one is asked them."""
        ...


class Encoding(Protocol):
    """What gives vectors of token ids."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def size(self) -> int:
        """How many dimensions its vectors have."""
        ...

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text it reads, its own marks among them; the rest is cut."""
        ...

    def ids(self, text: str) -> list[int]:
        """The token ids of a text."""
        ...

    def made(self, ids: Sequence[int]) -> bool:
        """Whether these ids can be what its own tokenizer gives of a text."""
        ...

    def __call__(self, rows: Sequence[Sequence[int]], dimensions: int | None = None) -> npt.NDArray[np.float32]:
        """Unit vectors float32 [rows, dimensions]."""
        ...


_NONE = Abilities()


def abilities(model: Model) -> Abilities:
    """What a model says that it can do."""
    stated: Abilities = getattr(model, "abilities", _NONE)
    return stated


def ref_of(model: Model) -> ModelRef | None:
    """What a model is written down as; None for one that is not made of weights here."""
    ref: ModelRef | None = getattr(model, "ref", None)
    return ref


def route_of(model: Model) -> DecodeChoice | None:
    """How a model computes its answers, and why so; None for one that is not made of weights in memory here."""
    chosen: DecodeChoice | None = getattr(model, "route", None)
    return chosen


def batching(model: Model) -> Batching | None:
    """The model as one that answers in a batch; None when it does not."""
    return cast(Batching, model) if abilities(model).batches else None


def scoring(model: Model) -> Scoring | None:
    """The model as one that scores texts; None when it does not."""
    return cast(Scoring, model) if abilities(model).scores else None


def passing(model: Model) -> Passing | None:
    """The model as one that requests are passed to; None when they are answered here."""
    return cast(Passing, model) if abilities(model).passes else None


def grounding(model: Model) -> Grounding | None:
    """The model as one that looks something up; None when it does not."""
    return cast(Grounding, model) if abilities(model).grounds else None


def loaded(model: Model) -> Model:
    """The model itself where it is one that is loaded with its first question."""
    load: Callable[[], Model] | None = getattr(model, "loaded", None)
    return model if load is None else load()
