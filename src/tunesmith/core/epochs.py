"""How often a run passes over its rows when nobody says: one rule for plans and for jobs. Knows nothing about plans, jobs or models.

It is OpenAI's own, to the rounding: 3 epochs; more when that would be fewer than 100 examples in all, at most 25; fewer when it would be
more than 25,000, at least 1. Both divisions are rounded down, as in the published code.
"""

from __future__ import annotations

SOURCE = "OpenAI cookbook, Data preparation and analysis for chat model fine-tuning (3 epochs, 100 to 25,000 examples in all, at most 25)"
EPOCHS, FEWEST_EXAMPLES, MOST_EXAMPLES, MOST_EPOCHS = 3, 100, 25_000, 25


def default_epochs(rows: int) -> int:
    """The epochs for so many training rows (at least 1)."""
    rows = max(1, rows)
    if EPOCHS * rows < FEWEST_EXAMPLES:
        return min(MOST_EPOCHS, FEWEST_EXAMPLES // rows)
    if EPOCHS * rows > MOST_EXAMPLES:
        return max(1, MOST_EXAMPLES // rows)
    return EPOCHS
