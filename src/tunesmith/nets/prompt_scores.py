"""The log-probability of each token of a prompt, and the likeliest in its place; knows nothing about text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tunesmith.nets.cached_attention import PrefillPass, Segment, SequenceCache
from tunesmith.nets.decoder import Engine

_CHUNK = 256  # tokens a pass: their logits over the whole vocabulary are in memory at once


@torch.inference_mode()
def prompt_log_probabilities(engine: Engine, ids: Sequence[int], adapter: str | None, top: int) -> list[dict[str, Any]]:
    """For each id after the first what `sampling.log_probabilities` gives of a drawn one: {"id", "logprob" (nats), "top"}."""
    cache, found = SequenceCache(), []
    for start in range(0, len(ids) - 1, _CHUNK):
        chunk = ids[start : min(start + _CHUNK, len(ids) - 1)]
        places = range(start, start + len(chunk))
        passed = PrefillPass([Segment(0, len(chunk), start, cache)])
        logits = engine.forward(list(chunk), list(places), [adapter] * len(chunk), passed, range(len(chunk)))
        found += _entries(torch.log_softmax(logits.double(), dim=-1), [ids[place + 1] for place in places], top)
    return found


def _entries(log_p: torch.Tensor, chosen: Sequence[int], top: int) -> list[dict[str, Any]]:
    own = log_p.gather(1, torch.tensor(chosen, device=log_p.device)[:, None])[:, 0].tolist()
    values, likely = torch.topk(log_p, top, dim=-1)
    tops = [list(zip(*pair, strict=True)) for pair in zip(likely.tolist(), values.tolist(), strict=True)]
    return [{"id": number, "logprob": value, "top": best} for number, value, best in zip(chosen, own, tops, strict=True)]
