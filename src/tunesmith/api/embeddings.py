"""POST /v1/embeddings: vectors of texts or token ids, as numbers or base64; knows nothing about how they are computed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from tunesmith.api.exchange import asks, attended
from tunesmith.api.http import away, reply
from tunesmith.api.proxy_read import inputs
from tunesmith.api.state import state_of
from tunesmith.core import wire
from tunesmith.core.deployment import Variant
from tunesmith.core.model_ref import ModelRef
from tunesmith.core.types import Record
from tunesmith.core.wire import BadRequest
from tunesmith.deploy.answered import Exchange, Outcome
from tunesmith.models.base import Encoding

_MOST = 2048


class _Body(Record, frozen=True):
    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


@asks("embeddings", "embd-")
async def create(request: Request, exchange: Exchange, body: bytes) -> Response:
    """The endpoint."""
    state, asked = state_of(request), wire.convert(wire.decode_object(body), _Body)
    encoder = await state.encoder(asked.model)
    exchange.variant = Variant(name=encoder.name, model=ModelRef(base=encoder.name))
    exchange.model_digest = encoder.digest
    if asked.dimensions is not None and not 1 <= asked.dimensions <= encoder.size:
        raise BadRequest(f"'dimensions' is {asked.dimensions}", param="dimensions", code="invalid_value", allowed=f"1 to {encoder.size}")
    rows = await state.answering.away(_rows, asked.input, encoder)
    exchange.messages = inputs(asked.input)
    vectors = await attended(request, away(encoder, rows, asked.dimensions))
    shown: list[Any] = [vector.tolist() for vector in vectors]
    if asked.encoding_format == "base64" and state.base64_embeddings:
        shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    tokens = sum(map(len, rows))
    await exchange.end(Outcome(prompt_tokens=tokens))
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
    return reply({"object": "list", "model": asked.model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def _rows(given: str | list[Any], encoder: Encoding) -> list[list[int]]:
    """Token ids of a text, texts, ids or lists of ids. Raises BadRequest for anything else."""
    entries: Sequence[Any] = [given] if isinstance(given, str) or (given and all(type(token) is int for token in given)) else given
    if not 1 <= len(entries) <= _MOST:
        raise BadRequest(f"'input' has {len(entries)} entries", param="input", code="invalid_value", allowed=f"1 to {_MOST}")
    return [_ids(entry, encoder) for entry in entries]


def _ids(entry: Any, encoder: Encoding) -> list[int]:
    if isinstance(entry, str) and entry:
        return encoder.ids(entry)
    if isinstance(entry, list) and entry and all(type(token) is int and 0 <= token < 1 << 31 for token in entry):
        if encoder.made(entry):
            return entry
        raise BadRequest(
            f"'input' has token ids {str(entry)[:60]}, which '{encoder.name}' cannot have made: it would read other words",
            param="input",
            code="invalid_value",
            allowed="texts (LangChain: check_embedding_ctx_length=False), or ids of the encoder's own tokenizer with its marks",
        )
    raise BadRequest(
        f"'input' has the entry {str(entry)[:60]!r}",
        param="input",
        code="invalid_value",
        allowed=f"texts that are not empty, or lists of token ids below {encoder.vocabulary}",
    )
