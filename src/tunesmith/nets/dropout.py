"""Dropout whose draws are a function of a seed and the call, so that a resumed run repeats them; knows nothing about models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_random = threading.local()


@contextmanager
def dropout_seed(seed: int) -> Iterator[None]:
    """Every SeededDropout that runs in this thread inside the block draws from one generator with this seed."""
    _random.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        del _random.generator


class SeededDropout(nn.Dropout):
    """Dropout whose masks come from the thread's own generator, so that packs computed side by side stay reproducible."""

    def mask(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The factors, 0 or 1/(1 − p), in the shape of x, from `generator` or the thread's. Outside of `dropout_seed` they come from
        torch's global one."""
        mask = torch.empty(x.shape).bernoulli_(1.0 - self.p, generator=generator or getattr(_random, "generator", None))
        return mask.div_(1.0 - self.p).to(x.device, x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training else x
