"""openai-agents by the Responses API, its own default, and set to chat completions."""

from __future__ import annotations

import asyncio

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from checks import LIMIT, MODEL, PLANNER, QUESTION, RESULTS, URL, Place, Trip, run
from openai import AsyncOpenAI

set_tracing_disabled(True)


WAYS = (OpenAIResponsesModel, OpenAIChatCompletionsModel)
WHOLE = 600  # tokens in which the answer comes to its end: of one that does not this client says so and gives nothing


def agent(way, name=MODEL, limit=LIMIT, **more):
    model = way(model=name, openai_client=AsyncOpenAI(base_url=URL, api_key="none", max_retries=0))
    return Agent(name="asks", model=model, model_settings=ModelSettings(temperature=0, max_tokens=limit), **more)


def chat(way):
    answer = asyncio.run(Runner.run(agent(way, limit=WHOLE), QUESTION)).final_output
    assert answer
    return answer


def stream(way):
    async def pieces():
        result = Runner.run_streamed(agent(way, limit=WHOLE), QUESTION)
        return [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]

    made = asyncio.run(pieces())
    assert len(made) > 1
    assert "".join(made) == chat(way)


def tools(way):
    seen = []

    @function_tool
    def weather(place: Place) -> str:
        seen.append("weather")
        return RESULTS["weather"]

    @function_tool
    def ferry(day: int, express: bool) -> str:
        seen.append("ferry")
        return RESULTS["ferry"]

    async def asked():
        asking = agent(way, PLANNER, tools=[weather, ferry])
        result = await Runner.run(asking, QUESTION, max_turns=4)
        assert result.final_output
        assert seen == ["weather", "ferry"], seen
        again = await Runner.run(asking, [*result.to_input_list(), {"role": "user", "content": "And back?"}], max_turns=4)
        assert again.final_output

    asyncio.run(asked())


def structured(way):
    assert isinstance(asyncio.run(Runner.run(agent(way, limit=200, output_type=Trip), QUESTION)).final_output, Trip)


def each_way(check):
    """The check by one interface and then by the other."""
    return lambda: [check(way) for way in WAYS]


run(chat=each_way(chat), stream=each_way(stream), tools=each_way(tools), structured=each_way(structured))
