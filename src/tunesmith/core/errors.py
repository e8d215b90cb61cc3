"""Every error that Tunesmith raises on purpose, with one root; knows nothing about exit codes' printing or HTTP.

TunesmithError              exit 1  something failed; the message says what, where, what was allowed and how to mend it
├── UsageError              exit 2  the caller asked for something that cannot be
│   ├── ConfigError                 a key or value in tunesmith.yaml, an option or a plan is wrong
│   ├── MissingExtra                a package that belongs to an extra is not installed
│   ├── ContextExceeded             a prompt that is longer than what the model reads
│   └── NotFound                    a name (model, row, run, file) that does not exist
├── DataError               exit 1  rows that cannot be used; carries every fault found, not only the first
├── SourceUnavailable       exit 1  a download or a service could not be reached
├── StoreError              exit 1  the store cannot be opened, written or trusted (a full disk included)
├── TrainingError           exit 1  a run cannot start or went wrong (nothing to train, loss not finite, bad artifact)
└── GateRefused             exit 3  everything worked and a gate said no
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class TunesmithError(Exception):
    """Root of the tree.

    `what` went wrong (with the value that came), `where` (file:line, key), what was `allowed`, the `remedy`.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", allowed: str = "", remedy: str = "") -> None:
        self.what, self.where, self.allowed, self.remedy = what, where, allowed, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        lines = [head]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.remedy:
            lines.append(f"  to mend it: {self.remedy}")
        return "\n".join(lines)


class UsageError(TunesmithError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """A key or a value in a configuration, an option or a plan is wrong."""


class MissingExtra(UsageError):
    """A package that belongs to an extra is not installed."""


class ContextExceeded(UsageError):
    """A prompt of `tokens` tokens (None: more than need be counted) for a model that reads `context`. `param` is where it came."""

    def __init__(self, tokens: int | None, context: int, *, param: str = "messages") -> None:
        self.tokens, self.context, self.param = tokens, context, param
        count = "far more" if tokens is None else f"{tokens} tokens"
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, your prompt has {count}",
            allowed=f"1 to {context - 1} tokens, so that one can be answered",
            remedy="shorten it",
        )


class NotFound(UsageError):
    """A name that does not exist; says which names are near."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one row: `code` is stable, `message` is for people, `where` is file:line or a key path."""

    where: str
    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.code}]"


class DataError(TunesmithError):
    """Rows that cannot be used. `faults` has all of them; the message shows the first ones."""

    def __init__(
        self, what: str, *, faults: Sequence[Fault] = (), shown: int = 20, where: str = "", allowed: str = "", remedy: str = ""
    ) -> None:
        self.faults = tuple(faults)
        self._shown = shown
        super().__init__(what, where=where, allowed=allowed, remedy=remedy)

    def __str__(self) -> str:
        lines = [f"  {fault}" for fault in self.faults[: self._shown]]
        if len(self.faults) > self._shown:
            lines.append(f"  … and {len(self.faults) - self._shown} more")
        return "\n".join([super().__str__(), *lines])


class SourceUnavailable(TunesmithError):
    """A download or a service could not be reached; says where it looked."""


class StoreError(TunesmithError):
    """The store cannot be opened, written or trusted."""


class TrainingError(TunesmithError):
    """A training run cannot start or went wrong."""


class GateRefused(TunesmithError):
    """Everything worked and a gate said no."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """The sentence `did you mean 'x'?` for the nearest known name, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""
