"""How long answering takes, by formula: the arithmetic of reading and writing over the shares of the products' rate that they reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.train.estimate import inner_parameters
from tunesmith.train.facts import base_shape

if TYPE_CHECKING:
    from tunesmith.flow.context import ProjectContext

# Shares of the best matrix-product rate that reading prompts and writing answers reach: an estimate must not take as long as the thing.
# Set by the demo (SmolLM2-135M, two idle cores, 2 × 447 GFLOP/s in bfloat16); `timing.py` measures by what factor they are wrong elsewhere.
READ, WRITE = 0.40, 0.07


def answering_seconds(context: ProjectContext, rate: float, *, read: float, rows: int, written: float) -> float:
    """Seconds to read `read` tokens of prompts of so many rows and to write `written` tokens, at `rate` FLOP/s of matrix products.

    What the prompts' rows have in common is read once.
    """
    tokens, config = context.runner.run("tokens").output, base_shape(context.base)
    body = inner_parameters(config)
    head = int(config["hidden_size"]) * int(config["vocab_size"])
    own = max(float(rows), read - rows * tokens["shared_prefix"])
    return float(2 * (body * own / READ + (body + head) * written / WRITE) / rate)
