"""What llama.cpp says next, of a GGUF file, in float32 where it computes: its cache and its sums. Knows nothing about who is compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.core.load import need

_TOP = 20


class LlamaCpp:
    """A file in memory that reads `context` tokens. Raises MissingExtra where llama.cpp's wheel is not installed."""

    def __init__(self, file: Path, context: int) -> None:
        xllamacpp = need("xllamacpp", extra="llamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = str(file), context, 1, False, 0
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._server = xllamacpp.Server(params)

    def tokens(self, text: str) -> int:
        """How many tokens it reads a text as."""
        return int(self._asked(text)["usage"]["prompt_tokens"])

    def next(self, ids: Sequence[int]) -> dict[int, float]:
        """The log-probabilities of the likeliest next tokens, the likeliest first; empty where it says nothing: of an end, and of the first
        half of a letter."""
        content = (self._asked(list(ids))["choices"][0].get("logprobs") or {}).get("content") or []
        return {int(entry["id"]): float(entry["logprob"]) for entry in content[0]["top_logprobs"]} if content else {}

    def _asked(self, prompt: str | list[int]) -> dict[str, Any]:
        asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": _TOP, "cache_prompt": True}
        answer = self._server.handle_completions(asked)
        tree: dict[str, Any] = json.loads(answer) if isinstance(answer, str | bytes) else answer
        return tree
