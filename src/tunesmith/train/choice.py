"""Which route a run takes and why, as records, and where the choices of earlier runs are kept. Imports nothing heavy; knows nothing about
how a route computes (`routes.py`) or is judged (`start_check.py`).

fused    one pass over a pack whose rows share their beginnings, with our attention, norms and blocks
packed   one pass over a pack, with transformers' own attention: rows end where positions begin anew
rows     one pass a row, with transformers' own attention; the loss from the last states
plain    one pass a row, by transformers and peft alone; the loss from the model's own logits
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from tunesmith.core.atomic import write_atomic
from tunesmith.core.types import Record, digest
from tunesmith.models.trial import Tried
from tunesmith.store.layout import user_folder
from tunesmith.train.facts import environment
from tunesmith.train.plan import ResolvedPlan


class Route(NamedTuple):
    """`tree`: our attention, over rows that share beginnings; `packed`: several rows a pass; `plain`: nothing of ours in the model."""

    name: str
    about: str
    tree: bool = False
    packed: bool = False
    plain: bool = False


FUSED = Route("fused", "packs with shared beginnings, our attention, norms and blocks", tree=True, packed=True)
PACKED = Route("packed", "packs, transformers' own attention", packed=True)
ROWS = Route("rows", "one row a pass, transformers' own attention")
PLAIN = Route("plain", "one row a pass, by transformers and peft alone", plain=True)
ROUTES = (FUSED, PACKED, ROWS, PLAIN)
BY_NAME = {route.name: route for route in ROUTES}


class Choice(Record, frozen=True):
    """The route that is taken, and all that were tried for it, or the `reason` where none was tried. `unreached`: trainable tensors that no
    row reaches. `alone`: the model keeps something of a pass in its modules, so that two at once would see each other's."""

    route: str
    tried: tuple[Tried, ...] = ()
    unreached: int = 0
    reason: str = "as the run began"
    alone: bool = False

    def why(self) -> str:
        """Why this route, in words."""
        seen = "; ".join(attempt.sentence() for attempt in self.tried)
        lane = "; one lane, for the model keeps something of a pass in its modules" if self.alone else ""
        return f"{BY_NAME[self.route].about}: {seen or self.reason}{lane}"


def _folder() -> Path:
    return user_folder() / "routes"


def read(path: Path) -> Choice | None:
    """The choice in a file, or None where there is none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Choice)
    except (OSError, msgspec.DecodeError):
        return None


def place(base: Path, plan: ResolvedPlan, longest: int, shapes: object) -> Path:
    """Where a choice is kept: under the base's configuration, what of the plan and the rows could change it, and all versions."""
    config = (base / "config.json").read_bytes().hex()
    asked = (plan.adapter, plan.dtype, plan.device, plan.activation_checkpointing)
    return _folder() / f"{digest(config, asked, longest, shapes, environment())}.json"


def _last(base: Path, plan: ResolvedPlan) -> Path:
    config = (base / "config.json").read_bytes().hex()
    adapter = msgspec.structs.replace(plan.adapter, start_from=None)
    return _folder() / f"last-{digest(config, adapter, plan.dtype, plan.device, environment())}.json"


def keep(choice: Choice, path: Path, base: Path, plan: ResolvedPlan) -> None:
    """Remember a choice for runs alike, and as the last one of this base and adapter."""
    for each in (path, _last(base, plan)):
        write_atomic(each, msgspec.json.encode(choice))


def recalled(base: Path, plan: ResolvedPlan) -> Choice | None:
    """What the last run with this base and adapter chose, whatever its rows were; None where there was none."""
    return read(_last(base, plan))
