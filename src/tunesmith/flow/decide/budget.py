"""What an experiment may still spend, in time and in dollars; knows nothing about what it is spent on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Budget:
    """`seconds` and `usd` bound the experiment (None: no bound); `machine_per_hour` is what its time costs besides hosted answers."""

    seconds: float | None = None
    usd: float | None = None
    machine_per_hour: float | None = None
    paid_usd: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def taken_s(self) -> float:
        """Seconds since the experiment began."""
        return time.monotonic() - self._began

    @property
    def taken_usd(self) -> float:
        """Dollars for hosted answers, and for the machine's time where its price is known."""
        return self.paid_usd + (self.machine_per_hour or 0.0) * self.taken_s / 3600

    def short(self, seconds: float = 0.0, *, race_s: float = 0.0) -> str:
        """Why something that takes so much more cannot be begun; empty when it can. `race_s` is what must be left after it, so that the
        arms that are built then can be asked."""
        after = f" to build it, and about {race_s:.0f} s for the first rows of the race" if race_s else ""
        if self.seconds is not None and self.taken_s + seconds + race_s > self.seconds:
            return f"it takes about {seconds:.0f} s{after}, and {max(0.0, self.seconds - self.taken_s):.0f} s of the budget are left"
        more = (self.machine_per_hour or 0.0) * (seconds + race_s) / 3600
        if self.usd is not None and self.taken_usd + more > self.usd:
            return f"it costs about {more:.4g} USD, and {max(0.0, self.usd - self.taken_usd):.4g} USD of the budget are left"
        return ""
