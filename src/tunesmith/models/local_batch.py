"""The rows of one local base, with any of its adapters, answered together step by step; knows nothing about threads or who listens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tunesmith.core.chat import Renderer
from tunesmith.core.types import Prompt, Sampling
from tunesmith.models.base import Asked, Piece
from tunesmith.models.constrain import Grammars
from tunesmith.models.local_answer import Reply, Way

if TYPE_CHECKING:
    from tunesmith.models.routed import RoutedEngine
    from tunesmith.nets.sequences import DecodeRequest


class _Sibling(Protocol):
    """What a local model gives its batch."""

    renderer: Renderer

    def request(self, prompt: Prompt, ids: Sequence[int], sampling: Sampling, *, share: int = 0, choice: int = 0) -> DecodeRequest: ...

    def head(self, prompt: Prompt, ids: Sequence[int]) -> int: ...


class LocalBatch:
    """See `Batch`. What prompts begin with alike (tools, system messages) is read once."""

    def __init__(self, engine: RoutedEngine, base: Path, stop_ids: frozenset[int], *, max_rows: int) -> None:
        self._decoder = engine.decoder(max_rows=max_rows)
        self._base, self._stop_ids = base, stop_ids
        self._rows: dict[int, tuple[Asked, Reply, int]] = {}  # the last is how many log-probabilities were given out

    @property
    def busy(self) -> bool:
        """See `Batch`."""
        return self._decoder.busy

    @property
    def load(self) -> tuple[int, int]:
        """See `Batch`."""
        return self._decoder.load

    @property
    def cache_use(self) -> float:
        """See `Batch`."""
        return self._decoder.cache_use

    def add(self, asked: Asked) -> int:
        """See `Batch`."""
        model = cast(_Sibling, asked.model)
        request = model.request(asked.prompt, asked.ids, asked.sampling, share=model.head(asked.prompt, asked.ids), choice=asked.choice)
        number = self._decoder.add(request)
        if asked.constraint is not None:
            try:
                self._decoder.hold(number, self._grammars.grammar(asked.constraint))
            except BaseException:
                self._decoder.cancel(number)
                raise
        way: Way = "plain" if asked.plain else "chat" if asked.constraint is None else "held"
        reply = Reply(model.renderer, asked.prompt, asked.sampling, prompt_tokens=len(asked.ids), started=asked.since, way=way)
        self._rows[number] = (asked, reply, 0)
        return number

    @cached_property
    def _grammars(self) -> Grammars:
        """Compiled for the base's vocabulary, when the first answer is held to a form."""
        size = self._decoder.engine.model.get_output_embeddings().weight.shape[0]
        return Grammars(self._base, size, self._stop_ids)

    def cancel(self, number: int) -> None:
        """See `Batch`."""
        if self._rows.pop(number, None) is not None:
            self._decoder.cancel(number)

    def step(self) -> list[tuple[int, Piece]]:
        """See `Batch`."""
        pieces = []
        for token in self._decoder.step():
            if token.sequence not in self._rows:
                continue  # a second token of the same step, after a stop string
            piece = self._taken(token.sequence, token)
            if piece is not None:
                pieces.append((token.sequence, piece))
        return pieces

    def _taken(self, number: int, token: Any) -> Piece | None:
        asked, reply, given = self._rows[number]
        text = reply.take(token)
        if reply.stopped_early:
            self._decoder.cancel(number)
        answer = reply.answer() if reply.done else None
        logprobs = tuple(reply.logprobs[given:])
        if answer is not None:
            del self._rows[number]
        else:
            self._rows[number] = (asked, reply, given + len(logprobs))
        return Piece(text, logprobs, answer, reply.thoughts) if text or reply.thoughts or logprobs or answer is not None else None
