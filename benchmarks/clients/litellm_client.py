"""LiteLLM, as a library."""

from __future__ import annotations

import litellm
from checks import ASKED, LIMIT, MODEL, PLANNER, TOOLS, URL, Trip, called, run, spoken, streamed

litellm.suppress_debug_info = True
tools = [{"type": "function", "function": {"name": name, "parameters": tool.model_json_schema()}} for name, tool in TOOLS.items()]


def ask(model=MODEL, **more):
    fixed = {"api_base": URL, "api_key": "none", "temperature": 0, "max_tokens": LIMIT, "num_retries": 0}
    return litellm.completion(model=f"openai/{model}", **fixed | more)


def chat():
    answer = ask(messages=ASKED)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens > 10
    return answer.choices[0].message.content


def stream():
    streamed([chunk.choices[0].delta.content or "" for chunk in ask(messages=ASKED, stream=True)], chat())


def loop(kinds, **more):
    messages, ids = list(ASKED), []
    for kind in kinds:
        message = ask(messages=messages, tools=tools, **kind, **more).choices[0].message
        assert message.tool_calls, message
        messages.append(message.model_dump())
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": called(call.function.name, call.function.arguments)})
            ids.append(call.id)
    assert len(set(ids)) == len(ids) >= 2
    return messages


def forced_tools():
    messages = loop(
        [{"tool_choice": "required", "parallel_tool_calls": False}, {"tool_choice": {"type": "function", "function": {"name": "ferry"}}}],
        max_tokens=200,
    )
    spoken(ask(messages=messages, tools=tools, tool_choice="none").choices[0].message.content)


def free_tools():
    assert ask(PLANNER, messages=loop([{}, {}], model=PLANNER), tools=tools).choices[0].message.content


def structured():
    Trip.model_validate_json(ask(messages=ASKED, response_format=Trip, max_tokens=100).choices[0].message.content)


def too_long():
    """The error's kind is read from its code and words."""
    try:
        ask(messages=[{"role": "user", "content": "word " * 20_000}])
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("no ContextWindowExceededError")


run(chat=chat, stream=stream, tools=forced_tools, free_tools=free_tools, structured=structured, too_long=too_long)
