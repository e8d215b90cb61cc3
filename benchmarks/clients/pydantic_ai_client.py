"""pydantic-ai: agents over chat completions."""

from __future__ import annotations

from checks import LIMIT, MODEL, PLANNER, QUESTION, RESULTS, URL, Place, Trip, run
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(name=MODEL, limit=LIMIT, **more):
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=URL, api_key="none"))
    return Agent(model, model_settings={"temperature": 0, "max_tokens": limit}, retries=0, **more)


def chat():
    result = agent().run_sync(QUESTION)
    assert result.output
    return result.output


def stream():
    import asyncio

    async def pieces():
        async with agent().run_stream(QUESTION) as result:
            return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

    made = asyncio.run(pieces())
    assert len(made) > 1
    assert "".join(made).strip() == chat().strip()


def tools():
    """The agent's own loop: two calls, then words."""
    seen = []
    asking = agent(PLANNER)

    @asking.tool_plain
    def weather(place: Place) -> str:
        seen.append("weather")
        return RESULTS["weather"]

    @asking.tool_plain
    def ferry(day: int, express: bool) -> str:
        seen.append("ferry")
        return RESULTS["ferry"]

    result = asking.run_sync(QUESTION)
    assert result.output
    assert seen == ["weather", "ferry"], seen
    again = asking.run_sync("And back?", message_history=result.all_messages())  # the whole history is sent
    assert again.output


def structured():
    for way in (ToolOutput, NativeOutput):
        assert isinstance(agent(limit=200, output_type=way(Trip)).run_sync(QUESTION).output, Trip)


run(chat=chat, stream=stream, tools=tools, structured=structured)
