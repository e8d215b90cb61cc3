"""`python -m benchmarks [NAME …]`: run the named benchmarks (all without a name). A benchmark is a module here with `main()`."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks

HELPERS = {"__main__", "harness"}


def names() -> list[str]:
    """The benchmarks: modules of this package that have a `main` and a `HEADLINES` tuple."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name not in HELPERS]
    return [name for name in found if hasattr(importlib.import_module(f"benchmarks.{name}"), "HEADLINES")]


def main() -> int:
    wanted = sys.argv[1:] or names()
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    for name in wanted:
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
