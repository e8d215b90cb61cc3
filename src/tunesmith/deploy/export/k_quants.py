"""llama.cpp's mixture Q4_K_M: which tensor gets how many bits, packed by ggml's own function, which the wheel `xllamacpp` brings."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.core.load import need

_BLOCK = 256  # numbers of a row that share a scale
_FALLS_BACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where a row is no whole number of blocks
_LAYER = re.compile(r"blk\.(\d+)\.")


def kind_of(name: str, width: int, layers: int, *, tied: bool) -> str:
    """The type of a matrix by its name in the file and the length of its rows: 6 bits for what answers most depend on, else 4."""
    layer = _LAYER.match(name)
    dear = layer is not None and ("attn_v." in name or "ffn_down." in name) and _more_bits(int(layer[1]), layers)
    kind = "Q6_K" if dear or name == "output.weight" or (tied and name == "token_embd.weight") else "Q4_K"
    if width % _BLOCK:
        kind = _FALLS_BACK[kind]
    return kind if width % 32 == 0 else "F16"


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third of those between (`use_more_bits` of llama.cpp)."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def packed(data: Any, kind: str) -> Any:
    """Rows of float32 [rows, width] in that type, as bytes [rows, …]."""
    import numpy as np

    gguf = need("gguf", extra="local")
    own = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[own]
    rows, width = data.shape
    source = np.ascontiguousarray(data, np.float32)
    made = np.zeros((rows, width // block * size), np.uint8)
    written = _quantize()(int(own), source.ctypes.data, made.ctypes.data, 0, rows, width, None)
    if written != made.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {made.nbytes} in {kind}")
    return made


@cache
def _quantize() -> Any:
    """ggml's function. Raises MissingExtra where the wheel is not installed."""
    xllamacpp = need("xllamacpp", extra="llamacpp")
    (library,) = Path(xllamacpp.__file__).parent.glob("xllamacpp*.so")
    function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return function
