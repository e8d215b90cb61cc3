"""Log-probabilities in the shape of the older completions: parallel lists over tokens. Knows nothing about where they come from."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any


class LogprobLists:
    """Makes the lists of one choice, a part at a time: `text_offset` goes on where the last part ended. An `offset` below 0 is a space of
    the tokenizer's own that stands before the text."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def part(self, tokens: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The lists of some entries of the API. The chosen token is always among the likeliest, as OpenAI has it. The first of a
        prompt, which nothing stands before, counts as certain: its entry is 0, where OpenAI's own description allows numbers only."""
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [_logprob(token) for token in tokens],
            "top_logprobs": [_likeliest(token) for token in tokens],
            "text_offset": [self._place(token) for token in tokens],
        }

    def _place(self, token: dict[str, Any]) -> int:
        """Where the token begins, in characters; one that is a part of a character begins where that does."""
        at = self._offset
        self._offset += len(self._characters.decode(bytes(token["bytes"] or token["token"].encode())))
        return max(at, 0)


def _likeliest(token: dict[str, Any]) -> dict[str, float]:
    likely: dict[str, float] = {}
    for likely_token in (*token["top_logprobs"], token):
        likely.setdefault(_name(likely_token), _logprob(likely_token))
    return likely


def _logprob(token: dict[str, Any]) -> float:
    return 0.0 if token["logprob"] is None else float(token["logprob"])


def _name(token: dict[str, Any]) -> str:
    """The token's text; of a part of a character its bytes, so that no two tokens have one name."""
    if "\ufffd" not in token["token"] or not token["bytes"]:
        return str(token["token"])
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token["bytes"])


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of one choice's lists, end to end."""
    return {key: [entry for part in parts for entry in part[key]] for key in parts[0]}


def spelled(tokens: Sequence[dict[str, Any]]) -> str:
    """The text of entries, special tokens as they are written."""
    return b"".join(bytes(token["bytes"] or token["token"].encode()) for token in tokens).decode("utf-8", "replace")
