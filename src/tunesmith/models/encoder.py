"""Sentence vectors from an encoder's folder: mean over the tokens, unit length; knows nothing about who asks."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tunesmith.core.load import need

Vectors = npt.NDArray[np.float32]
_BATCH = 32


class Encoder:
    """A BERT-like encoder (`config.json`, safetensors, `tokenizer.json`) as sentence-transformers use it (Reimers and Gurevych 2019).

    `name` is what people call it, `digest` names its weights where the caller knows them. It reads at most `max_tokens` of a text, and no
    more than it has positions for.
    """

    def __init__(self, folder: Path, *, max_tokens: int = 256, name: str = "", digest: str = "") -> None:
        self.name, self.digest = name or folder.name, digest
        torch, transformers = need("torch", extra="local"), need("transformers", extra="local")
        tokenizers = need("tokenizers", extra="local")
        self._torch, self._lock = torch, threading.Lock()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, trust_remote_code=False)
        self._model.eval().requires_grad_(False)
        self.max_tokens = min(max_tokens, getattr(self._model.config, "max_position_embeddings", max_tokens))

    def ids(self, text: str) -> list[int]:
        """The token ids of a text with the encoder's own marks."""
        return list(self._tokenizer.encode_batch([text])[0].ids)  # of a batch, Python's lock is let go

    @property
    def size(self) -> int:
        """How many dimensions its vectors have."""
        return int(self._model.config.hidden_size)

    def made(self, ids: Sequence[int]) -> bool:
        """Whether these can be its tokenizer's: they stand between its own marks, or, where it sets none, they are what it gives of the
        text that they stand for. Ids of another vocabulary are small numbers too, and would be read as other words."""
        marks = self.ids("")
        if not all(0 <= number < self.vocabulary for number in ids):
            return False
        if marks:
            return len(ids) >= len(marks) and (ids[0], ids[-1]) == (marks[0], marks[-1])
        return self.ids(self._tokenizer.decode(list(ids), skip_special_tokens=False)) == list(ids)

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, rows: Sequence[Sequence[int]], dimensions: int | None = None) -> Vectors:
        """Unit vectors float32 [rows, dimensions] of token ids; long rows are cut to `max_tokens`, the mark of their end kept, vectors to
        their first `dimensions`."""
        if not rows:
            return np.zeros((0, dimensions or self.size), dtype=np.float32)
        torch = self._torch
        means_by_row: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with self._lock, torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                short = [self._cut(rows[i]) for i in batch]
                width = max(map(len, short))
                ids = torch.tensor([row + [0] * (width - len(row)) for row in short])
                mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in short])
                hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                weight = mask.unsqueeze(-1).float()
                means = ((hidden * weight).sum(1) / weight.sum(1)).numpy()
                for i, vector in zip(batch, means, strict=True):
                    means_by_row[i] = vector
        vectors = np.stack(means_by_row)[:, :dimensions]
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)

    def _cut(self, row: Sequence[int]) -> list[int]:
        return list(row) if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]]
