"""Memory that is no longer used is given back: kernels of products of many shapes, and what was freed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunesmith.core.memory import KERNELS

# Products of 60 lengths through the shapes of a small model, as packs of training have them; prints the growth in MB.
PRODUCTS = """
import psutil, torch
import tunesmith.models
from tunesmith.core.memory import give_back
torch.set_num_threads(1)
shapes = [(576, 576), (192, 576), (1536, 576), (576, 1536), (16, 576), (576, 16)]
weights = [torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes]
def products(rows):
    for weight in weights:
        torch.zeros(rows, weight.shape[1], dtype=torch.bfloat16) @ weight.T @ weight
    give_back()
    return psutil.Process().memory_info().rss / 1e6
first = products(700)
print(max(products(300 + 7 * i) for i in range(60)) - first)
"""
FREED = """
import psutil
from tunesmith.core.memory import give_back
rss = lambda: psutil.Process().memory_info().rss / 1e6
many = [bytearray(50_000) for _ in range(4_000)]
last = bytearray(50_000)  # above them: without a trim nothing below is given back
full = rss()
del many
give_back(cycles=True)
print(full - rss())
"""


def measured(code: str, **settings: str) -> float:
    clean = {key: value for key, value in os.environ.items() if key not in KERNELS}
    return float(subprocess.run([sys.executable, "-c", code], env=clean | settings, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_products_of_many_shapes_leave_few_kernels_behind():
    assert measured(PRODUCTS) < 150  # 420 where nothing bounds them (AVX512-BF16)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")
def test_what_was_freed_is_given_back():
    assert measured(FREED) > 150
