"""What is asked to see whether what answers is what was deployed: choices between two words that are as good as each other, so that a small
change of the weights shows in the first token. Knows nothing about who is asked."""

from __future__ import annotations

from tunesmith.core.types import Message

_CHOICES = (
    "coffee tea, river lake, north south, bread rice, red blue, winter summer, cat dog, piano guitar, iron copper, seven nine, left right, "
    "apple pear, bus train, letter call, glass paper, king queen, forest desert, silver gold, Monday Friday, salt sugar, moon star, "
    "chair table, early late, wool silk"
)
_WORDINGS = ("One word: {0} or {1}?", "Between {1} and {0} I choose")  # each pair in both orders


def conversations(system: str | None, count: int) -> tuple[tuple[Message, ...], ...]:
    """The first `count` probes (48 at most), each under the system message of the task, so that what is kept of that prefix is used."""
    head = (Message(role="system", content=system),) if system else ()
    texts = [wording.format(*pair.split()) for pair in _CHOICES.split(", ") for wording in _WORDINGS]
    return tuple((*head, Message(role="user", content=text)) for text in texts[:count])
