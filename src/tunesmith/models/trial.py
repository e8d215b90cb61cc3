"""What trying a way to compute has shown: how far it is from transformers' own pass, or what it raised."""

from __future__ import annotations

from tunesmith.core.errors import TunesmithError
from tunesmith.core.types import Record

# What a model may raise that is tried in a way which it was not written for: the way is not taken.
RAISED = (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError, NotImplementedError, AssertionError, TunesmithError)


class Tried(Record, frozen=True):
    """A route that was tried: its largest relative deviation from transformers' own pass and the `bound`, or what it `raised`."""

    route: str
    deviation: float | None = None
    bound: float | None = None
    raised: str = ""

    @property
    def passed(self) -> bool:
        """Whether it may be taken."""
        return self.deviation is not None and self.bound is not None and self.deviation <= self.bound

    def sentence(self) -> str:
        """What was seen, in words."""
        if self.raised:
            return f"{self.route} raises {self.raised}"
        verdict = "equals" if self.passed else "differs from"
        return f"{self.route} {verdict} transformers' own pass by {self.deviation:.1e} (allowed {self.bound:.0e})"


def shown(error: BaseException) -> str:
    """An error's kind and first line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
