"""The starting model's log-probabilities, computed once before the first step and kept in the run's folder. Knows nothing about losses.

They are taken from the model as the run begins (a fresh adapter is the identity), never later, and belong to exactly one identity of plan,
data and base; a file of another identity, or a damaged one, is not read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunesmith.core.atomic import write_atomic
from tunesmith.train.adapters import Trainable
from tunesmith.train.items import Item
from tunesmith.train.microbatch import Lanes, Reference, row_logps
from tunesmith.train.objectives import Objective
from tunesmith.train.run import RunFolder


def references(run: RunFolder, name: str, items: Sequence[Item], objective: Objective, trainable: Trainable, lanes: Lanes) -> Reference:
    """Σ log p of every row of every item under the starting model, float32 [items, rows]; zeros where the method wants none.

    `trainable` must hold the weights that the run starts from.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save

    width = len(items[0].every) if items else 1
    if not objective.reference or not items:
        return np.zeros((len(items), width), np.float32)
    path = run.out / f"reference-{name}.safetensors"
    try:
        with safe_open(path, "np") as file:
            logps: Reference = file.get_tensor("logp")
            if (file.metadata() or {}).get("identity") == run.identity and logps.shape == (len(items), width):
                return logps
    except (OSError, SafetensorError):
        pass  # none yet, or cut off: it is computed again
    rows = [row for item in items for row in item.every]
    logps = row_logps(trainable, rows, run.manifest.resolved, lanes).reshape(len(items), width)
    write_atomic(path, save({"logp": logps}, metadata={"identity": run.identity}))
    return logps
