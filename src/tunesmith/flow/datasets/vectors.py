"""Sentence embeddings by an encoder of the catalogue; knows nothing about what they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.core.load import need
from tunesmith.models.catalog import Catalog

Floats = np.ndarray[Any, np.dtype[np.float64]]


def embed(texts: Sequence[str], catalog: Catalog, encoder: str = "minilm-l6-v2") -> Floats:
    """Sentence embeddings (n × d, length 1): the encoder's last states, averaged over the tokens of each text (first 256)."""
    torch, transformers = need("torch", extra="local"), need("transformers", extra="local")
    folder = catalog.encoder(encoder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length together: little padding
    found = np.zeros((len(texts), int(model.config.hidden_size)))
    with torch.inference_mode():
        for begin in range(0, len(order), 64):
            places = order[begin : begin + 64]
            batch = tokenizer([texts[i] or " " for i in places], padding=True, truncation=True, max_length=256, return_tensors="pt")
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            found[places] = ((states * mask).sum(1) / mask.sum(1)).float().numpy()
    return np.asarray(found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12))
