"""What transformers' own pass says along an answer, and what any pass's logits say at its places. Knows nothing about who is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.deploy.parity import TokenPlace

Word = Callable[[int], str]
OTHERS = 20  # likeliest tokens that are kept of the reference


def greedy(model: Any, prompt: Sequence[int], stop_ids: frozenset[int], max_tokens: int) -> list[int]:
    """The ids of the model's greedy answer by transformers' own `generate`, the one that ends it among them."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the folder's own may draw, or punish repetition
    ids = torch.tensor([list(prompt)])
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(stop_ids), pad_token_id=min(stop_ids), use_cache=True
    )
    with torch.no_grad():
        answer: list[int] = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0].tolist()
    return answer[len(prompt) :]


def along(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """Logits [answer, V] in float32 that predict each id of the answer, by one pass without a cache."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]]), use_cache=False).logits[0, len(prompt) - 1 :]
    return logits.float()


def reference_places(logits: Tensor, answer: Sequence[int], word: Word) -> tuple[TokenPlace, ...]:
    """The places of the reference: its own answer, with the next likeliest tokens at each."""
    chances = logits.log_softmax(-1)
    top = chances.topk(min(OTHERS, chances.shape[-1]), -1)
    return tuple(
        TokenPlace(
            chosen=word(token),
            best=float(row[token]),
            expected=float(row[token]),
            others={word(other): value for other, value in zip(ids, values, strict=True)},
        )
        for token, row, ids, values in zip(answer, chances, top.indices.tolist(), top.values.tolist(), strict=True)
    )


def places(logits: Tensor, answer: Sequence[int], word: Word) -> tuple[TokenPlace, ...]:
    """What a side's logits [answer, V] say at the places of the reference's answer."""
    chances = logits.log_softmax(-1)
    best, chosen = chances.max(-1)
    return tuple(
        TokenPlace(chosen=word(own), best=value, expected=float(row[token]))
        for token, row, own, value in zip(answer, chances, chosen.tolist(), best.tolist(), strict=True)
    )
