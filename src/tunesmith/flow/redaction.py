"""Personal data and secrets taken out of what is logged: the data room's patterns, for the store's writer; knows nothing about logs."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.errors import ConfigError, nearest
from tunesmith.data.pii import KINDS, find_all, replace
from tunesmith.store.wording import Reworded


def redaction(kinds: Sequence[str]) -> Reworded | None:
    """Puts `<KIND>` in the place of everything of these kinds; None where there are none. Raises ConfigError for an unknown kind."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ConfigError(
            f"no kind of personal data is called '{unknown[0]}'",
            where="serve.log.redact",
            allowed=", ".join(KINDS),
            remedy=nearest(unknown[0], KINDS),
        )

    def redacted(texts: Sequence[str]) -> list[str]:
        return [replace(text, spans) for text, spans in zip(texts, find_all(texts, kinds), strict=True)]

    return redacted if kinds else None
