"""What every Python client is asked to do, run in the client's own environment; each result is a line of JSON. Knows no client."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field

URL, MODEL, PLANNER = sys.argv[1:4]
LIMIT = 24
QUESTION = "What is the weather in Ghent, and when does the ferry leave?"
ASKED = [{"role": "user", "content": QUESTION}]
RESULTS = {"weather": "7 degrees", "ferry": "at three"}


class Place(BaseModel):
    """A nested record, so that schemas have definitions."""

    town: Literal["Ghent", "Bruges"]


class weather(BaseModel):
    """The weather in a place."""

    place: Place


class ferry(BaseModel):
    """When the ferry leaves."""

    day: int = Field(ge=1, le=7)
    express: bool


class Trip(BaseModel):
    """A structured answer."""

    place: Place
    days: int = Field(ge=1, le=9)
    mood: Literal["good", "bad"]


TOOLS: dict[str, type[BaseModel]] = {"weather": weather, "ferry": ferry}


def called(name: str, arguments: str | dict[str, Any]) -> str:
    """What a tool gives for a call. Raises ValidationError when its arguments are not those of its schema."""
    if isinstance(arguments, str):
        TOOLS[name].model_validate_json(arguments)
    else:
        TOOLS[name].model_validate(arguments)
    return RESULTS[name]


def streamed(pieces: list[str], whole: str | None) -> None:
    """A streamed answer came in pieces and is the whole one."""
    assert len([piece for piece in pieces if piece]) > 1, pieces
    assert "".join(pieces) == whole, (pieces, whole)


def spoken(words: str | None) -> None:
    """An answer in words; a small model may find that all is said."""
    assert isinstance(words, str), words


def run(**checks: Callable[[], Any]) -> None:
    """Run each check; print whether it did what it should."""
    for name, check in checks.items():
        try:
            check()
            print(json.dumps({"check": name, "ok": True}), flush=True)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is the finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:600]} ({place.filename.rpartition('/')[2]}:{place.lineno})"
            print(json.dumps({"check": name, "ok": False, "what": what}), flush=True)
