"""Comparisons and rollouts on live requests, simulated with known truths: `make bench-live`."""

from __future__ import annotations

from benchmarks import live_ab

HEADLINES = (*live_ab.NAMES,)


def main() -> None:
    """Run both simulations; each writes its tables into its page."""
    live_ab.simulate()


if __name__ == "__main__":
    main()
