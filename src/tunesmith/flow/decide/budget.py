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

    def short(self, seconds: float = 0.0, *, kept: float = 0.0) -> str:
        """Why something that takes so much more cannot be begun; empty when it can. A share `kept` of the whole is for what comes after."""
        after = f", {kept:.0%} of it kept for the race" if kept else ""
        if self.seconds is not None and self.taken_s + seconds > (1 - kept) * self.seconds:
            return f"it takes about {seconds:.0f} s and {max(0.0, self.seconds - self.taken_s):.0f} s of the budget are left{after}"
        more = (self.machine_per_hour or 0.0) * seconds / 3600
        if self.usd is not None and self.taken_usd + more > (1 - kept) * self.usd:
            return f"it costs about {more:.4g} USD and {max(0.0, self.usd - self.taken_usd):.4g} USD of the budget are left{after}"
        return ""
