"""What a name answers with: a version of an alias, its strategy and its variants; knows nothing about how anything answers."""

from __future__ import annotations

import math
from typing import Literal

from tunesmith.core.errors import ConfigError
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.passages import Retrieval
from tunesmith.core.types import Message, Record

SAMPLING_DEFAULTS = ("max_tokens", "temperature", "top_p")
StrategyName = Literal["one", "split", "fallback", "shadow"]
_LEADING = ("system", "developer")


class Variant(Record, frozen=True):
    """One way to answer: a model here, or an upstream by its name in `serve.upstreams`, with a prompt and sampling of its own.

    `instruction` is put in place of the request's system message, and `shots` are solved turns between that and the conversation;
    `sampling` are defaults for what a request leaves open (`max_tokens`, `temperature`, `top_p`); `retrieval` is what it looks up for each
    question.

    What `weight` means is the strategy's to say: the share of requests that a variant is assigned (`split`), or that are copied to it
    (`shadow`). `timeout_s` is how long it may take before another answers in its place (`fallback`; None: as long as it likes), and
    `copies_per_minute` the most that are copied to it (`shadow`; None: as many as come).
    """

    name: str
    model: ModelRef | None = None
    upstream: str | None = None
    instruction: str | None = None
    shots: tuple[Message, ...] = ()
    sampling: dict[str, float] = {}
    retrieval: Retrieval | None = None
    weight: float = 1.0
    timeout_s: float | None = None
    copies_per_minute: int | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.upstream is None):
            raise ConfigError(f"variant '{self.name}' has {'both' if self.model else 'neither'}", allowed="a model, or an upstream")
        if unknown := sorted(self.sampling.keys() - set(SAMPLING_DEFAULTS)):
            raise ConfigError(f"variant '{self.name}' has the sampling keys {unknown}", allowed=", ".join(SAMPLING_DEFAULTS))
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"variant '{self.name}' has the weight {self.weight}", allowed="0 or more")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ConfigError(f"variant '{self.name}' has the time limit {self.timeout_s}", allowed="seconds, more than 0")
        if self.copies_per_minute is not None and self.copies_per_minute < 0:
            raise ConfigError(f"variant '{self.name}' has {self.copies_per_minute} copies a minute", allowed="0 or more")

    @property
    def prompted(self) -> bool:
        """Whether anything is put before the conversation."""
        return self.instruction is not None or bool(self.shots)

    def instructed(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The messages under this variant's instruction in place of their own, and after its shots, where it has them."""
        if self.instruction is None:
            cut = next((i for i, message in enumerate(messages) if message.role not in _LEADING), len(messages))
            return (*messages[:cut], *self.shots, *messages[cut:])
        rest = tuple(message for message in messages if message.role not in _LEADING)
        return (Message(role="system", content=self.instruction), *self.shots, *rest)


class Enrolment(Record, frozen=True):
    """Whose requests a deployment draws for an experiment: keys that fall into [`low`, `high`) of the draw of its `layer`. Experiments of
    one layer have parts of it that do not meet, so nobody is in two. Variants are drawn by the experiment's own id: what one experiment
    drew says nothing about the next. `baseline`: the first variant answers a copy of every drawn request, whose score is a covariate."""

    experiment: str
    layer: str
    low: float = 0.0
    high: float = 1.0
    baseline: bool = False


class Deployment(Record, frozen=True):
    """A version of an alias. Versions are never changed: a new one takes its place, and the table of them is the history.

    `created` in seconds of the epoch; `reason` says why and `by` who put it in force. `enrolment` is there while an experiment runs.
    """

    alias: str
    version: int
    variants: tuple[Variant, ...]
    strategy: StrategyName = "one"
    created: float = 0.0
    reason: str = ""
    by: str = ""
    enrolment: Enrolment | None = None

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the deployment of '{self.alias}' has the variants {names}", allowed="at least one; distinct names")
        if self.strategy == "split" and not sum(variant.weight for variant in self.variants) > 0:
            raise ConfigError(f"no variant of '{self.alias}' has a weight", allowed="at least one weight above 0")

    def variant(self, name: str) -> Variant | None:
        """The variant of that name."""
        return next((variant for variant in self.variants if variant.name == name), None)
