"""What an answer cost in time, tokens and money, and whether it was refused; knows nothing about whether it was right."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from tunesmith.core.errors import ConfigError
from tunesmith.core.types import Answer, Example
from tunesmith.evaluate.metrics.base import Metric, measured, register

_REFUSAL = re.compile(
    r"^\W*(?:(?:i['’]?m|i am)\s+(?:very\s+|so\s+)?(?:sorry|afraid|unable|not able)|sorry\b|"
    r"i (?:can['’]?t|cannot|can not|won['’]?t|will not)\b|i must (?:decline|refuse)|as an ai\b|"
    r"unfortunately,? i (?:can['’]?t|cannot|am unable))",
    re.IGNORECASE,
)


@register("latency")
def latency(until: Literal["last", "first"] = "last") -> Metric:
    """Seconds until the last (or first) token; missing where the model does not tell. Range 0 and up, lower is better, mean."""
    if until not in ("last", "first"):
        raise ConfigError(f"until '{until}'", where="metric 'latency'", allowed="last, first")
    return Metric(
        name="latency",
        rate=lambda _, answer: answer.total_s if until == "last" else answer.first_token_s,
        high=np.inf,
        better="lower",
        unit="s",
    )


@register("tokens")
def tokens(of: Literal["completion", "prompt", "both"] = "both") -> Metric:
    """Tokens that were read, generated or both. Range 0 and up, lower is better, mean."""
    if of not in ("completion", "prompt", "both"):
        raise ConfigError(f"of '{of}'", where="metric 'tokens'", allowed="completion, prompt, both")

    def rate(_: Example, answer: Answer) -> float:
        return float((of != "completion") * answer.prompt_tokens + (of != "prompt") * answer.completion_tokens)

    return Metric(name="tokens", rate=rate, high=np.inf, better="lower", unit="tokens")


@register("cost")
def cost(prompt_usd: float, completion_usd: float) -> Metric:
    """US dollars an answer, from the prices of a million tokens read and generated. Range 0 and up, lower is better, mean."""

    def rate(_: Example, answer: Answer) -> float:
        return (answer.prompt_tokens * prompt_usd + answer.completion_tokens * completion_usd) / 1e6

    return Metric(name="cost", rate=rate, high=np.inf, better="lower", unit="usd")


@measured("refusal", better="lower")
def refusal(_: Example, answer: Answer) -> float:
    """1 when the answer was filtered or opens with one of English's usual refusals. Range 0 to 1, lower is better, mean."""
    return float(answer.finish_reason == "content_filter" or bool(_REFUSAL.search(answer.text[:300])))
