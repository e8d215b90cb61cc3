"""Comparisons and rollouts on live requests, simulated with known truths: `make bench-live`."""

from __future__ import annotations

from benchmarks import live_ab, live_canary

HEADLINES = (*live_ab.NAMES, *live_canary.NAMES)


def main() -> None:
    """Run both simulations; each writes its tables into its page."""
    live_ab.simulate()
    live_canary.simulate()


if __name__ == "__main__":
    main()
