"""Tunesmith: custom language models from raw data to a watched deployment, each step proven."""

from tunesmith._version import __version__

__all__ = ["__version__"]
