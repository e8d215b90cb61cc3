"""Adjusted p-values for many tests at once; knows nothing about what was tested."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tunesmith.core.errors import UsageError
from tunesmith.core.stats.records import Floats, column


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment (1979): rejecting at α keeps the chance of any false rejection at or below α."""
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1))
    return _restored(np.minimum(stepped, 1.0), order)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini and Hochberg's step-up adjustment (1995): rejecting at α keeps the expected share of false rejections at or below α."""
    p = _checked(p_values)
    order = np.argsort(p, kind="stable")
    stepped = np.minimum.accumulate((p[order] * p.size / np.arange(1, p.size + 1))[::-1])[::-1]
    return _restored(np.minimum(stepped, 1.0), order)


def _checked(p_values: ArrayLike) -> Floats:
    p = column(p_values, "p-values", least=0)
    if np.any((p < 0) | (p > 1)):
        raise UsageError(f"p-values from {p.min()} to {p.max()}", allowed="0 to 1")
    return p


def _restored(adjusted: Floats, order: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Floats:
    back = np.empty_like(adjusted)
    back[order] = adjusted
    return back
