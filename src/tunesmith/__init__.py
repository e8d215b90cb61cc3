"""Tunesmith: custom language models from raw data to a watched deployment, each step proven.

The names of `__all__` are what a notebook needs (docs/python.md); each is loaded when it is first used. None is the name of a package of
ours, such as `train`: importing that would take its place.
"""

from tunesmith._version import __version__

TYPE_CHECKING = False  # as type checkers know it; `typing` itself would be loaded for it
if TYPE_CHECKING:
    from tunesmith.core.errors import TunesmithError
    from tunesmith.core.types import Example
    from tunesmith.python import ask, catalog, compare, finetune, gate, init, measure, model, plan, rows, run, serve

__all__ = [
    "Example",
    "TunesmithError",
    "__version__",
    "ask",
    "catalog",
    "compare",
    "finetune",
    "gate",
    "init",
    "measure",
    "model",
    "plan",
    "rows",
    "run",
    "serve",
]


def __getattr__(name: str) -> object:
    """A name of `__all__`, loaded now (PEP 562)."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module 'tunesmith' has no attribute '{name}'")
    homes = {"Example": "tunesmith.core.types", "TunesmithError": "tunesmith.core.errors"}
    value = globals()[name] = getattr(importlib.import_module(homes.get(name, "tunesmith.python")), name)
    return value


def __dir__() -> list[str]:
    """The names of `__all__`, for completion."""
    return __all__
