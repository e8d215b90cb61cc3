"""openai-python, whatever version this environment has."""

from __future__ import annotations

from checks import ASKED, LIMIT, MODEL, PLANNER, TOOLS, URL, Trip, called, run, spoken, streamed
from openai import OpenAI, pydantic_function_tool

client = OpenAI(base_url=URL, api_key="none", max_retries=0)
asked = {"model": MODEL, "temperature": 0, "max_tokens": LIMIT}
tools = [pydantic_function_tool(tool) for tool in TOOLS.values()]


def chat():
    answer = client.chat.completions.create(messages=ASKED, **asked)
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens > 10
    return answer.choices[0].message.content


def stream():
    chunks = client.chat.completions.create(messages=ASKED, stream=True, stream_options={"include_usage": True}, **asked)
    streamed([choice.delta.content or "" for chunk in chunks for choice in chunk.choices], chat())


def tools_in_a_loop():
    """Two calls that must be made, by name and by any name, then an answer in words; each answer is sent back as it came."""
    messages, ids = list(ASKED), []
    by_name = {"tool_choice": {"type": "function", "function": {"name": "ferry"}}}
    for kind in ({"tool_choice": "required", "parallel_tool_calls": False}, by_name):
        answer = client.chat.completions.create(messages=messages, tools=tools, **kind, **asked | {"max_tokens": 100})
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls", answer
        messages.append(message.model_dump())
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": called(call.function.name, call.function.arguments)})
            ids.append(call.id)
    assert len(set(ids)) == len(ids) >= 2
    answer = client.chat.completions.create(messages=messages, tools=tools, tool_choice="none", **asked)
    spoken(answer.choices[0].message.content)


def free_tools():
    """The model decides: it calls both tools, one after the other, and answers."""
    messages = list(ASKED)
    for turn in range(3):
        stream = client.chat.completions.create(model=PLANNER, messages=messages, tools=tools, stream=True)
        calls, words = {}, ""
        for chunk in stream:
            for choice in chunk.choices:
                words += choice.delta.content or ""
                for piece in choice.delta.tool_calls or []:
                    call = calls.setdefault(piece.index, {"id": piece.id, "type": "function", "function": {"name": "", "arguments": ""}})
                    call["function"]["name"] += piece.function.name or ""
                    call["function"]["arguments"] += piece.function.arguments or ""
        assert bool(calls) == (turn < 2), (turn, calls)
        messages.append({"role": "assistant", "content": words or None, **({"tool_calls": list(calls.values())} if calls else {})})
        for call in calls.values():
            result = called(call["function"]["name"], call["function"]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    assert messages[-1]["content"]


def structured():
    answer = client.chat.completions.parse(messages=ASKED, response_format=Trip, **asked | {"max_tokens": 100})
    assert isinstance(answer.choices[0].message.parsed, Trip)


def functions():
    """The older way of tools."""
    function = tools[1]["function"]
    answer = client.chat.completions.create(
        messages=ASKED, functions=[function], function_call={"name": "ferry"}, **asked | {"max_tokens": 100}
    )
    call = answer.choices[0].message.function_call
    assert answer.choices[0].finish_reason == "function_call"
    result = {"role": "function", "name": call.name, "content": called(call.name, call.arguments)}
    spoken(client.chat.completions.create(messages=[*ASKED, answer.choices[0].message, result], **asked).choices[0].message.content)


run(chat=chat, stream=stream, tools=tools_in_a_loop, free_tools=free_tools, structured=structured, functions=functions)
