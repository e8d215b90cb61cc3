"""Chat templates written for the tests, each with the one habit of a family that a renderer trips over; and tokenizers that know its marks."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.templates import byte_tokenizer

from tunesmith.core.chat import Renderer


class Family(NamedTuple):
    """A template, its special tokens (the first ends an answer in the tokenizer's eyes), and the ends of its generation config."""

    source: str
    special: tuple[str, ...]
    ends: tuple[str, ...] = ()


_TOOLS = "{% if tools %}{{ '<|sys|>' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|end|>' }}{% endif %}"
_ASK = "{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
_MARKS = ("<|end|>", "<|sys|>", "<|usr|>", "<|bot|>", "<|tool|>")


def _turns(assistant: str, *, system: str = "<|sys|>") -> str:
    """A loop over turns in which the assistant's are written by `assistant`."""
    return (
        _TOOLS + "{% for m in messages %}{% if m.role == 'assistant' %}" + assistant
        + "{% elif m.role == 'tool' %}{{ '<|tool|>' + m.content + '<|end|>' }}"
        + "{% elif m.role == 'system' %}{{ '" + system + "' + m.content + '<|end|>' }}"
        + "{% else %}{{ '<|usr|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    )  # fmt: skip


def _calls(each: str) -> str:
    return "{% for c in m.tool_calls or [] %}" + each + "{% endfor %}"


# What was thought is written in the last turn alone, and an empty thought where there was none.
LAST_THOUGHTS = _turns(
    "{% set said = m.content or '' %}{{ '<|bot|>' }}"
    "{% if loop.last %}{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}{{ said }}"
    + _calls("{{ '<tool_call>\\n{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\\n</tool_call>' }}")
    + "{{ '<|end|>' }}"
) + _ASK  # fmt: skip

# Serving begins the thoughts; the row has other white space between their marks, or none of them.
PROMPT_THINKS = _turns(
    "{{ '<|bot|><think>' + (('\\n' + m.reasoning_content + '\\n') if m.reasoning_content else '') + '</think>' + (m.content or '') + '<|end|>' }}"
) + _ASK.replace("<|bot|>", "<|bot|><think>\\n")
TAKES_THOUGHTS_OUT = _turns("{{ '<|bot|>' + m.content.split('</think>')[-1] + '<|end|>' }}") + _ASK.replace("<|bot|>", "<|bot|><think>\\n")
SHUTS_THOUGHTS = _turns("{{ '<|bot|>' + (m.content or '') + '<|end|>' }}") + _ASK.replace("<|bot|>", "<|bot|><think>\\n</think>")

# Channels: thoughts, words and calls are messages of their own; another token ends the last turn, and another a call.
CHANNELS = (
    "{{ '<|start|>system<|message|>Day one.<|end|>' }}{% if tools %}{{ '<|start|>developer<|message|>' + (tools | tojson) + '<|end|>' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    "{% if m.content and m.thinking %}{{ raise_exception('both') }}{% endif %}"
    "{{ '<|start|>assistant to=functions.' + f.name + '<|channel|>commentary json<|message|>' + (f.arguments | tojson) + '<|call|>' }}"
    "{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' + (m.content | tojson) + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

# A turn is closed by nothing: the next one's mark ends it.
OPEN_TURNS = (
    _TOOLS.replace("<|end|>", "")
    + "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|bot|>\\n' + (m.content or '') }}"
    + _calls(
        "{{ '\\n<tool_call>' + c.function.name }}{% for k, v in c.function.arguments.items() %}"
        "{{ '\\n<arg_key>' + k + '</arg_key>\\n<arg_value>' + (v if v is string else v | tojson) + '</arg_value>' }}{% endfor %}{{ '\\n</tool_call>' }}"
    )
    + "{% elif m.role == 'tool' %}{{ '<|tool|>\\n' + m.content }}{% else %}{{ ('<|sys|>' if m.role == 'system' else '<|usr|>') + '\\n' + m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|bot|>' }}{% endif %}"
)

# A call and its result stand in one turn; keys are bare and texts have marks for quotes.
BARE_KEYS = (
    _turns(
        "{{ '<|bot|>' + (m.content or '') }}"
        + _calls(
            "{{ '<|call|>call:' + c.function.name + '{' }}{% for k, v in c.function.arguments.items() %}"
            "{{ k + ':' + (('<|q|>' + v + '<|q|>') if v is string else v | tojson) + (',' if not loop.last else '') }}{% endfor %}{{ '}<call|>' }}"
        )
        + "{% if m.tool_calls %}{{ '<|tool|>' }}{% else %}{{ '<|end|>' }}{% endif %}"
    ).replace("{{ '<|tool|>' + m.content", "{{ 'response:' + m.content")
    + _ASK
)

# The header is written whether it is asked for or not; words and calls stand in marks of their own.
ALWAYS_ASKS = _turns(
    "{{ '<|bot|>' }}{% if m.tool_calls %}{{ '<|act|>[' }}"
    + _calls("{{ {'tool_name': c.function.name, 'parameters': c.function.arguments} | tojson + (', ' if not loop.last else '') }}")
    + "{{ ']<|acted|><|end|>' }}{% else %}{{ '<|say|>' + m.content + '<|said|><|end|>' }}{% endif %}"
) + "{{ '<|bot|><think></think>' }}"  # fmt: skip

# The system's words stand before the last question, while it is the last turn.
LATE_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set rule = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{{ '<|bos|>' }}{% for m in turns %}{% if m.role == 'user' %}{{ '<|usr|>' + ((rule + '\\n\\n') if loop.last and rule else '') + m.content + '<|bot|>' }}"
    "{% elif m.role == 'assistant' %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    "{{ '[CALLS]' + c.function.name + '[ARGS]' + (c.function.arguments | tojson) }}{% endfor %}{{ (m.content or '') + '<|end|>' }}"
    "{% else %}{{ '<|tool|>' + m.content + '<|asked|>' }}{% endif %}{% endfor %}"
)

# Arguments are joined to text, and content beside calls must be none.
TEXT_ARGUMENTS = (
    _turns(
        "{% if m.content is none %}{{ '<|bot|><|calls|>' }}"
        + _calls("{{ '<|one|>function<|sep|>' + c.function.name + '\\n```json\\n' + c.function.arguments + '\\n```<|done|>' }}")
        + "{{ '<|called|><|end|>' }}{% else %}{{ '<|bot|>' + m.content + '<|end|>' }}{% endif %}"
    )
    + _ASK
)

PYTHON_CALLS = (
    _turns(
        "{{ '<|bot|>' + (m.content or '') }}{% if m.tool_calls %}{{ '<|calls|>[' }}"
        + _calls(
            "{{ c.function.name + '(' }}{% for k, v in c.function.arguments.items() %}{{ k + '=' }}"
            "{{ (\"'\" + v + \"'\") if v is string else v }}{{ ', ' if not loop.last else '' }}{% endfor %}{{ ')' + (', ' if not loop.last else '') }}"
        )
        + "{{ ']<|called|>' }}{% endif %}{{ '<|end|>' }}"
    )
    + _ASK
)

WRITES_NONE = _turns("{{ '<|bot|>' ~ m.content ~ '<|end|>' }}") + _ASK

FAMILIES: dict[str, Family] = {
    "last thoughts": Family(LAST_THOUGHTS, _MARKS),
    "the prompt thinks": Family(PROMPT_THINKS, (*_MARKS, "<think>", "</think>")),
    "takes thoughts out": Family(TAKES_THOUGHTS_OUT, _MARKS),
    "shuts thoughts": Family(SHUTS_THOUGHTS, (*_MARKS, "<think>", "</think>")),
    "channels": Family(CHANNELS, ("<|return|>", "<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>"), ("<|return|>", "<|call|>")),
    "open turns": Family(OPEN_TURNS, ("<|text|>", *_MARKS[1:]), ("<|text|>", "<|usr|>", "<|tool|>")),
    "bare keys": Family(BARE_KEYS, (*_MARKS, "<|call|>", "<call|>", "<|q|>"), ("<|end|>", "<|tool|>")),
    "always asks": Family(ALWAYS_ASKS, (*_MARKS, "<|act|>", "<|acted|>", "<|say|>", "<|said|>", "<think>", "</think>"), ("<|end|>",)),
    "late system": Family(LATE_SYSTEM, ("<|end|>", "<|bos|>", "<|usr|>", "<|bot|>", "<|tool|>", "<|asked|>", "[CALLS]", "[ARGS]")),
    "text arguments": Family(TEXT_ARGUMENTS, (*_MARKS, "<|calls|>", "<|one|>", "<|sep|>", "<|done|>", "<|called|>")),
    "Python calls": Family(PYTHON_CALLS, (*_MARKS, "<|calls|>", "<|called|>")),
    "writes None": Family(WRITES_NONE, _MARKS),
}  # fmt: skip


def renderer(family: Family) -> Renderer:
    """The renderer of a family, with the ends that its generation config would have."""
    tokens = byte_tokenizer(family.special)
    numbers = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    return Renderer(tokens, family.source, {"bos_token": "", "eos_token": family.special[0]}, [numbers[end] for end in family.ends])


def parrot(folder: Path, family: Family, said: list[str]) -> Path:
    """A model in `folder` that answers everything with the same pieces, each a token of its own: a layer that adds nothing, and an output layer
    that names the token that follows each. The first piece follows `<|bot|>`."""
    import torch
    import transformers
    from tokenizers import AddedToken, Tokenizer

    raw = Tokenizer.from_str(json.dumps(byte_tokenizer(family.special)))
    raw.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in said[:-1]])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=family.special[0])
    fast.chat_template = family.source
    fast.save_pretrained(folder)
    size = -(-raw.get_vocab_size() // 4) * 4
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=1024,
        tie_word_embeddings=False, eos_token_id=raw.token_to_id(family.special[0]), bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    chain = [raw.token_to_id(piece) for piece in ("<|bot|>", *said)]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following, token] = 9.0
    model.save_pretrained(folder)
    return folder
