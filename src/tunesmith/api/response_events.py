"""The server-sent events of a streamed response, in their order and numbered; knows nothing about models or where responses are kept.

Thoughts, then words, then calls: each is an item that is added, grows by deltas and is done. Whoever adds the deltas up has the items of
`response.completed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from tunesmith.core.response_object import Shown, item_id, reasoning_item, text_part
from tunesmith.models.base import Piece

_encode = msgspec.json.Encoder().encode
_TEXT = {"reasoning": "reasoning_text", "message": "output_text"}


class ResponseEvents:
    """Makes the events of the response `number`."""

    def __init__(self, number: str, shown: Shown) -> None:
        self._number, self._shown = number, shown
        self._sequence = 0
        self._open: str | None = None  # the type of the item that grows
        self._place = 0
        self._thoughts, self._logprobs = "", list[Any]()
        self.spoken = False

    def event(self, kind: str, **more: Any) -> bytes:
        """One event."""
        body = {"type": kind, "sequence_number": self._sequence, **more}
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encode(body) + b"\n\n"

    def begun(self, response: Mapping[str, Any]) -> bytes:
        """What a stream begins with."""
        return self.event("response.created", response=response) + self.event("response.in_progress", response=response)

    def grown(self, piece: Piece) -> Iterator[bytes]:
        """What became certain of thoughts and words."""
        if piece.thoughts:
            if self._open is None:
                yield self._added({"type": "reasoning", "id": item_id("rs", self._number, 0), "summary": [], "content": []})
            self._thoughts += piece.thoughts
            yield self._delta("response.reasoning_text.delta", piece.thoughts, "rs")
        self._logprobs += piece.logprobs if self._shown.logprobs else ()
        if piece.text:
            if self._open == "reasoning":
                yield from self._done(reasoning_item(self._thoughts, self._number, self._shown))
            if self._open is None:
                self.spoken = True
                yield self._added({"type": "message", "id": item_id("msg", self._number, self._place), "role": "assistant", "content": []})
            yield self._words(piece.text)

    def ended(self, items: Sequence[dict[str, Any]]) -> Iterator[bytes]:
        """What ends the item that is open, and all of those that no piece told of. `items` are the answer's, whole."""
        if self._open == "message" and self._logprobs:
            yield self._words("")
        for item in items[self._place :]:
            if item["type"] == "function_call":
                yield from self._call(item)
                continue
            if self._open is None:
                yield self._added({**item, "content": []})
                if words := item["content"][0]["text"]:
                    more = {"logprobs": item["content"][0]["logprobs"]} if item["type"] == "message" else {}
                    yield self._delta(f"response.{_TEXT[item['type']]}.delta", words, item["id"].partition("_")[0], **more)
            yield from self._done(item)

    def _added(self, item: dict[str, Any]) -> bytes:
        self._open = item["type"]
        plain = {key: value for key, value in item.items() if key not in ("encrypted_content", "sources")} | {"status": "in_progress"}
        part = text_part("") if item["type"] == "message" else {"type": "reasoning_text", "text": ""}
        added = self.event("response.output_item.added", output_index=self._place, item=plain)
        return added + self.event("response.content_part.added", **self._at(item["id"]), part=part)

    def _at(self, item: str) -> dict[str, Any]:
        return {"item_id": item, "output_index": self._place, "content_index": 0}

    def _delta(self, kind: str, words: str, prefix: str, **more: Any) -> bytes:
        return self.event(kind, **self._at(item_id(prefix, self._number, self._place)), delta=words, **more)

    def _words(self, words: str) -> bytes:
        logprobs, self._logprobs = self._logprobs, []
        return self._delta("response.output_text.delta", words, "msg", logprobs=logprobs)

    def _done(self, item: dict[str, Any]) -> Iterator[bytes]:
        part, at = item["content"][0], self._at(item["id"])
        for i, annotation in enumerate(part.get("annotations", ())):
            yield self.event("response.output_text.annotation.added", **at, annotation_index=i, annotation=annotation)
        more = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
        yield self.event(f"response.{part['type']}.done", **at, text=part["text"], **more)
        yield self.event("response.content_part.done", **at, part=part)
        yield self.event("response.output_item.done", output_index=self._place, item=item)
        self._open, self._place = None, self._place + 1

    def _call(self, item: dict[str, Any]) -> Iterator[bytes]:
        at = {"item_id": item["id"], "output_index": self._place}
        yield self.event("response.output_item.added", output_index=self._place, item=item | {"arguments": "", "status": "in_progress"})
        yield self.event("response.function_call_arguments.delta", **at, delta=item["arguments"])
        yield self.event("response.function_call_arguments.done", **at, name=item["name"], arguments=item["arguments"])
        yield self.event("response.output_item.done", output_index=self._place, item=item)
        self._place += 1
