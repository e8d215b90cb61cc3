"""LangChain's ChatOpenAI."""

from __future__ import annotations

from checks import LIMIT, MODEL, PLANNER, QUESTION, TOOLS, URL, Trip, called, run, spoken, streamed
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI


def chat_model(limit=LIMIT, model=MODEL, **more):
    return ChatOpenAI(model=model, base_url=URL, api_key="none", temperature=0, max_tokens=limit, max_retries=0, **more)


def chat():
    answer = chat_model().invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata["total_tokens"] > 10
    return answer.content


def stream():
    streamed([chunk.content for chunk in chat_model(stream_usage=True).stream(QUESTION)], chat())


def loop(model, kinds):
    messages, ids = [HumanMessage(QUESTION)], []
    for kind in kinds:
        answer = model.bind_tools(list(TOOLS.values()), **kind).invoke(messages)
        assert answer.tool_calls, answer
        assert not answer.invalid_tool_calls
        messages.append(answer)
        for call in answer.tool_calls:
            messages.append(ToolMessage(called(call["name"], call["args"]), tool_call_id=call["id"]))
            ids.append(call["id"])
    assert len(set(ids)) == len(ids) >= 2
    return messages


def tools():
    messages = loop(chat_model(200), [{"tool_choice": "any", "parallel_tool_calls": False}, {"tool_choice": "ferry", "strict": True}])
    spoken(chat_model().invoke(messages).content)


def free_tools():
    messages = loop(chat_model(model=PLANNER), [{}, {}])
    assert chat_model(model=PLANNER).bind_tools(list(TOOLS.values())).invoke(messages).content


def structured():
    for method in ("json_schema", "function_calling"):
        made = chat_model(200).with_structured_output(Trip, method=method, include_raw=True).invoke(QUESTION)
        assert isinstance(made["parsed"], Trip), made


run(chat=chat, stream=stream, tools=tools, free_tools=free_tools, structured=structured)
