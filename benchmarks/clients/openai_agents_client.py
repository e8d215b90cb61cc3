"""openai-agents, set to chat completions (its own default is the Responses API)."""

from __future__ import annotations

import asyncio

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from checks import LIMIT, MODEL, PLANNER, QUESTION, RESULTS, URL, Place, Trip, run
from openai import AsyncOpenAI

set_tracing_disabled(True)


def agent(name=MODEL, limit=LIMIT, **more):
    model = OpenAIChatCompletionsModel(model=name, openai_client=AsyncOpenAI(base_url=URL, api_key="none", max_retries=0))
    return Agent(name="asks", model=model, model_settings=ModelSettings(temperature=0, max_tokens=limit), **more)


def chat():
    answer = asyncio.run(Runner.run(agent(), QUESTION)).final_output
    assert answer
    return answer


def stream():
    async def pieces():
        result = Runner.run_streamed(agent(), QUESTION)
        return [
            event.data.delta
            async for event in result.stream_events()
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
        ]

    made = asyncio.run(pieces())
    assert len(made) > 1
    assert "".join(made) == chat()


def tools():
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
        asking = agent(PLANNER, tools=[weather, ferry])
        result = await Runner.run(asking, QUESTION, max_turns=4)
        assert result.final_output
        assert seen == ["weather", "ferry"], seen
        again = await Runner.run(asking, [*result.to_input_list(), {"role": "user", "content": "And back?"}], max_turns=4)
        assert again.final_output

    asyncio.run(asked())


def structured():
    assert isinstance(asyncio.run(Runner.run(agent(limit=200, output_type=Trip), QUESTION)).final_output, Trip)


run(chat=chat, stream=stream, tools=tools, structured=structured)
