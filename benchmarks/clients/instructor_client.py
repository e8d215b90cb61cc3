"""instructor: structured answers, by tools and by a JSON Schema."""

from __future__ import annotations

import instructor
from checks import ASKED, LIMIT, MODEL, PLANNER, TOOLS, URL, Trip, called, run, streamed
from openai import OpenAI, pydantic_function_tool

plain = OpenAI(base_url=URL, api_key="none", max_retries=0)
asked = {"model": MODEL, "temperature": 0}
tools = [pydantic_function_tool(tool) for tool in TOOLS.values()]


def client(mode=instructor.Mode.TOOLS):
    return instructor.from_openai(plain, mode=mode)


def chat():
    answer = client().chat.completions.create(response_model=None, messages=ASKED, max_tokens=LIMIT, **asked)
    assert answer.choices[0].message.content
    return answer.choices[0].message.content


def stream():
    chunks = client().chat.completions.create(response_model=None, messages=ASKED, stream=True, max_tokens=LIMIT, **asked)
    streamed([choice.delta.content or "" for chunk in chunks for choice in chunk.choices], chat())


def tools_in_a_loop():
    messages = list(ASKED)
    for _ in range(2):
        answer = client().chat.completions.create(response_model=None, model=PLANNER, messages=messages, tools=tools)
        message = answer.choices[0].message
        messages.append(message.model_dump())
        for call in message.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": called(call.function.name, call.function.arguments)})
    answer = client().chat.completions.create(response_model=None, model=PLANNER, messages=messages, tools=tools)
    assert answer.choices[0].message.content


def structured():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        made = client(mode).chat.completions.create(response_model=Trip, messages=list(ASKED), max_retries=0, max_tokens=200, **asked)
        assert isinstance(made, Trip)


def partial():
    """A structured answer while it streams."""
    made = list(client().chat.completions.create_partial(response_model=Trip, messages=list(ASKED), max_retries=0, max_tokens=200, **asked))
    Trip.model_validate(made[-1].model_dump())


run(chat=chat, stream=stream, tools=tools_in_a_loop, structured=structured, partial=partial)
