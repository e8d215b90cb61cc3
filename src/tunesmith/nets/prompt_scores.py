"""The log-probability of each token of a prompt, and the likeliest in its place; knows nothing about text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch


class Reading(Protocol):
    """A model that reads a prompt."""

    def prompt_logits(self, ids: Sequence[int], adapter: str | None) -> Iterator[torch.Tensor]:
        """Logits float32 [places, V] of the tokens after each id but the last, some places at a time."""
        ...


@torch.inference_mode()
def prompt_log_probabilities(engine: Reading, ids: Sequence[int], adapter: str | None, top: int) -> list[dict[str, Any]]:
    """For each id after the first what `sampling.log_probabilities` gives of a drawn one: {"id", "logprob" (nats), "top"}."""
    entries: list[dict[str, Any]] = []
    for logits in engine.prompt_logits(ids, adapter):
        after = ids[len(entries) + 1 :][: len(logits)]
        entries += _entries(torch.log_softmax(logits.double(), dim=-1), after, top)
    return entries


def _entries(log_p: torch.Tensor, chosen: Sequence[int], top: int) -> list[dict[str, Any]]:
    own = log_p.gather(1, torch.tensor(chosen, device=log_p.device)[:, None])[:, 0].tolist()
    values, likely = torch.topk(log_p, top, dim=-1)
    tops = [list(zip(*pair, strict=True)) for pair in zip(likely.tolist(), values.tolist(), strict=True)]
    return [{"id": number, "logprob": value, "top": best} for number, value, best in zip(chosen, own, tops, strict=True)]
