"""Vectors of texts by an encoder of the catalogue, exact or rough; knows nothing about what they are for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.core.load import need
from tunesmith.models.catalog import Catalog
from tunesmith.models.encoder import Encoder

Floats = np.ndarray[Any, np.dtype[np.float64]]


def at_hand(catalog: Catalog, encoder: str) -> str:
    """Why the encoder cannot be used without fetching anything; empty when it can."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: pip install 'tunesmith[local]'"
    folder = catalog.folder / "encoders" / encoder.replace("/", "--")
    return "" if (folder / "tunesmith.txt").is_file() else f"the encoder {encoder} is not on this machine yet"


def rough(texts: Sequence[str], catalog: Catalog, encoder: str = "minilm-l6-v2") -> Floats:
    """Rough vectors (n × d, length 1), for finding candidates: the mean of the encoder's own token vectors, without its layers, which is
    about a hundred times faster than `embed`."""
    tokenizer, table = _token_vectors(catalog.encoder(encoder))
    vectors = np.zeros((len(texts), table.shape[1]))
    for begin in range(0, len(texts), 1_024):
        parts = tokenizer.encode_batch_fast([text[:4_000] for text in texts[begin : begin + 1_024]], add_special_tokens=False)
        for i, part in enumerate(parts, start=begin):
            vectors[i] = table[part.ids].sum(axis=0) if part.ids else 0.0
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


@cache
def _token_vectors(folder: Path) -> tuple[Any, Floats]:
    """The encoder's tokenizer and its token vectors (vocabulary × d), centred, so that what all texts share does not count."""
    torch, transformers = need("torch", extra="local"), need("transformers", extra="local")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    table = model.get_input_embeddings().weight.detach().numpy().astype(np.float64)
    tokenizer = need("tokenizers", extra="local").Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    return tokenizer, table - table.mean(axis=0)


def embed(texts: Sequence[str], catalog: Catalog, encoder: str = "minilm-l6-v2") -> Floats:
    """Sentence embeddings (n × d, length 1): the encoder's last states, averaged over the tokens of each text (first 256)."""
    model = Encoder(catalog.encoder(encoder))
    return model([model.ids(text) for text in texts]).astype(np.float64)
