"""A tokenizer as GGUF holds it, for the byte-level ones whose splitting llama.cpp knows. Knows nothing about weights.

llama.cpp splits a text by a pattern that it has under a name, not by the tokenizer's own: one that it does not have would give other ids,
and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core.chat import Renderer
from tunesmith.core.errors import UsageError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What splits a text, as `_splitting` spells it → llama.cpp's name for it.
SPLITTING = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (_CONTRACTIONS + r"\p{N}{1,3}|" + _REST,): "llama-bpe",
    (_CONTRACTIONS + r"\p{N}|" + _REST,): "qwen2",
}


def add_tokenizer(writer: Any, base: Path, rows: int) -> None:
    """Write the tokenizer of a folder, for a model with so many embeddings. Raises UsageError for one that llama.cpp reads otherwise."""
    import gguf

    where = base / "tokenizer.json"
    tree = json.loads(where.read_text("utf-8"))
    model, renderer = tree["model"], Renderer.load(base)
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise _refused(f"a {model.get('type')} tokenizer" + (" with byte fallback" if model.get("byte_fallback") else ""), where)
    pattern = tuple(_splitting(tree.get("pre_tokenizer") or {}))
    if pattern not in SPLITTING:
        raise _refused(f"a tokenizer that splits texts by {' then '.join(pattern) or 'nothing'}", where)
    added = {int(token["id"]): token for token in tree.get("added_tokens", ())}
    names = {int(number): token for token, number in model["vocab"].items()} | {number: str(t["content"]) for number, t in added.items()}
    kinds = gguf.TokenType
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLITTING[pattern])
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([_kind(number, names, added, kinds) for number in range(rows)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    _add_marks(writer, base, renderer, tree)


def _add_marks(writer: Any, base: Path, renderer: Renderer, tree: dict[str, Any]) -> None:
    """Which tokens begin and end texts and answers, and the chat template."""
    path = base / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    named = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(key)
        number = renderer.ids([str(token.get("content") if isinstance(token, dict) else token)])[0] if token else None
        if number is not None:
            named[key] = number
    ends = sorted(renderer.stop_ids)
    eos = named["eos_token"] if named.get("eos_token") in ends else ends[0]
    writer.add_eos_token_id(eos)
    writer.add_eot_token_id(next((number for number in ends if number != eos), eos))
    for key in ("bos_token", "pad_token", "unk_token"):
        if key in named:
            getattr(writer, f"add_{key}_id")(named[key])
    writer.add_add_bos_token(bool(config.get("add_bos_token")) or _begins_with(tree, config))
    writer.add_chat_template(renderer.template.source)


def _begins_with(tree: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether the tokenizer itself puts the beginning token before a text."""
    steps = tree.get("post_processor") or {}
    several = steps.get("processors", [steps])
    firsts = [step["single"][0] for step in several if step.get("type") == "TemplateProcessing" and step.get("single")]
    return any("SpecialToken" in first for first in firsts)


def _kind(number: int, names: dict[int, str], added: dict[int, dict[str, Any]], kinds: Any) -> Any:
    if number not in names:
        return kinds.UNUSED
    if number in added:
        return kinds.CONTROL if added[number].get("special") else kinds.USER_DEFINED
    return kinds.NORMAL


def _splitting(step: dict[str, Any]) -> Iterator[str]:
    """What a tokenizer splits a text by, step by step: patterns, `digits` one by one, `bytes` by GPT-2's pattern."""
    kind = step.get("type")
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _splitting(inner)
    elif kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        yield str((step.get("pattern") or {}).get("Regex"))
    elif kind == "Digits" and step.get("individual_digits"):
        yield "digits"
    elif kind == "ByteLevel" and not step.get("add_prefix_space"):
        yield from ["bytes"] if step.get("use_regex", True) else []
    elif kind is not None:
        yield str(kind)


def _refused(what: str, where: Path) -> UsageError:
    return UsageError(
        f"GGUF cannot hold {what}: llama.cpp would read other tokens",
        where=str(where),
        allowed="byte-level BPE that splits as GPT-2, SmolLM, Llama 3 or Qwen 2 do",
        remedy="--to merged",
    )
