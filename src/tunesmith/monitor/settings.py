"""The section `monitor:` of tunesmith.yaml: what is watched and against what. Knows nothing about how."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Record

_TURNED = "a share above 0 and below 1"


class Monitor(Record, frozen=True):
    """What is watched of an alias.

    Drift: questions and answers in windows of `window` chats, against the first `baseline` chats of the log or the rows of `reference`.
    `vectors`: by the catalogue's encoder (`auto`: where it is on this machine), or by words alone. `alpha` is the chance that a quiet
    window is an alarm. Quality: each day's `sample` of answers is scored by `metrics`, name → options, as evaluations do (a judge has
    `judge` and `criterion`), and held against golden answers: the first `baseline` of the sample, or the rows of `golden`, which a
    judge scores anew every `golden_days`. `shift` is the fall of the mean that is to be seen, as a share of the scale; of quiet charts
    `false_share` are an alarm within `days`.
    """

    window: int = 200
    baseline: int = 1000
    reference: str = ""
    vectors: Literal["auto", "encoder", "words"] = "auto"
    alpha: float = 0.005
    sample: int = 50
    metrics: dict[str, dict[str, Any]] = msgspec.field(default_factory=lambda: {"refusal": {}})
    golden: str = ""
    golden_days: float = 30.0
    shift: float = 0.1
    days: int = 90
    false_share: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (("window", 20), ("baseline", 100), ("sample", 1), ("days", 1), ("golden_days", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"'{name}' is {getattr(self, name)}", where=f"monitor.{name}", allowed=f"{least} or more")
        for name in ("alpha", "shift", "false_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"'{name}' is {getattr(self, name)}", where=f"monitor.{name}", allowed=_TURNED)
