"""The plan of the house is what stands there: every place that it names exists, and every room is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLAN = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGE = ROOT / "src" / "tunesmith"


def places() -> list[str]:
    """Files and folders of the package that the plan names with their room; a file in brackets of a table's line is in that line's folder."""
    named = []
    for line in PLAN.splitlines():
        folder = re.match(r"\| `(\w+/)` \|", line)
        for word in re.findall(r"`([\w/]+(?:\.py|/))`", line):
            if "/" in word.rstrip("/") or (folder and word == folder[1]):
                named.append(word)
            elif folder:
                named.append(folder[1] + word)
    return sorted({place for place in named if "NAME" not in place})


@pytest.mark.parametrize("place", places())
def test_what_the_plan_names_is_there(place: str) -> None:
    assert (PACKAGE / place).exists()


def test_every_room_is_in_the_plan_and_on_a_floor() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert {room for room in rooms if f"| `{room}/` |" not in PLAN} == set()
    floors = PLAN.split("```")[1]
    assert {room for room in rooms if not re.search(rf"\b{room}\b", floors)} == set()


def test_the_glossary_fits_on_a_screen() -> None:
    assert len((ROOT / "docs" / "glossary.md").read_text("utf-8").splitlines()) <= 40
