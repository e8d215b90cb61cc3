"""What a text costs a local model: nats and tokens of a conversation's last turn, or of a document. Draws nothing, and knows no metric.

A document is scored as it is trained: its own tokens and the end-of-text token, without a chat template; one that is longer than the
context in pieces, each of which starts anew with the last token before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from tunesmith.core.chat import Renderer, replace_weight
from tunesmith.core.types import Answer, Document, Example, Prompt

_ROWS = 16  # that are scored together
Piece = tuple[list[int], list[int]]


class LikelyTokens(Protocol):
    """A model with a renderer and a context that says how likely token ids are."""

    renderer: Renderer

    @property
    def engine(self) -> Any: ...

    def nll(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, int]]:
        """(summed negative log-likelihood in nats, scored tokens) of each row of (ids, mask)."""
        ...


def likelihoods(model: LikelyTokens, prompts: Sequence[Prompt]) -> Iterator[Answer]:
    """For each conversation an answer without words and with one entry of log-probabilities: {"nats", "tokens"} of its last turn."""
    for start in range(0, len(prompts), _ROWS):
        pieces = [pieces_of(model.renderer, prompt, int(model.engine.context)) for prompt in prompts[start : start + _ROWS]]
        scored = iter(model.nll([piece for several in pieces for piece in several]))
        for several in pieces:
            parts = [next(scored) for _ in several]
            cost = {"nats": float(sum(nats for nats, _ in parts)), "tokens": int(sum(count for _, count in parts))}
            yield Answer(text="", prompt_tokens=sum(len(ids) for ids, _ in several), logprobs=(cost,))


def pieces_of(renderer: Renderer, prompt: Prompt, room: int) -> list[Piece]:
    """Token ids with the mask of those that are scored, in pieces of at most `room` tokens."""
    *asked, last = prompt.messages
    if asked:
        turns = (*(replace_weight(turn, 0) for turn in asked), last)
        row = renderer.example(Example(id="", messages=turns, tools=prompt.tools))
    else:
        row = renderer.documents([Document(id="", text=last.text)])[0]
    count = -(-(len(row.ids) - 1) // (room - 1)) if len(row.ids) > room else 1
    bounds = np.linspace(0, len(row.ids) - 1, count + 1).round().astype(int)
    return [(row.ids[a : b + 1].tolist(), row.mask[a : b + 1].tolist()) for a, b in pairwise(bounds)]
