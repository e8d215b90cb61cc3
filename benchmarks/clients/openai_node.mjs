// openai-node: chat, stream, tools in a loop, a structured answer.
import OpenAI from "openai";
import { z } from "zod";
import { zodResponseFormat } from "openai/helpers/zod";
import { ASKED, LIMIT, MODEL, PLANNER, TOOLS, Trip, URL, assert, called, run, streamed } from "./checks.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: "none", maxRetries: 0 });
const asked = { model: MODEL, temperature: 0, max_tokens: LIMIT };
const tools = Object.entries(TOOLS).map(([name, tool]) => ({
  type: "function",
  function: { name, parameters: z.toJSONSchema(tool) },
}));

async function chat() {
  const answer = await client.chat.completions.create({ ...asked, messages: ASKED });
  assert(answer.choices[0].message.content && answer.usage.total_tokens > 10, JSON.stringify(answer));
  return answer.choices[0].message.content;
}

async function stream() {
  const pieces = [];
  for await (const chunk of await client.chat.completions.create({ ...asked, messages: ASKED, stream: true })) {
    pieces.push(chunk.choices[0]?.delta?.content ?? "");
  }
  streamed(pieces, await chat());
}

async function loop(kinds, more) {
  const messages = [...ASKED];
  const ids = new Set();
  let count = 0;
  for (const kind of kinds) {
    const answer = await client.chat.completions.create({ ...asked, max_tokens: 200, messages, tools, ...kind, ...more });
    const message = answer.choices[0].message;
    assert(message.tool_calls?.length, JSON.stringify(answer));
    messages.push(message);
    for (const call of message.tool_calls) {
      messages.push({ role: "tool", tool_call_id: call.id, content: called(call.function.name, JSON.parse(call.function.arguments)) });
      ids.add(call.id);
      count += 1;
    }
  }
  assert(ids.size === count && count >= 2, "ids repeat");
  const last = await client.chat.completions.create({ ...asked, messages, tools, ...(more ?? { tool_choice: "none" }) });
  assert(typeof last.choices[0].message.content === "string", JSON.stringify(last)); // a small model may find that all is said
}

const forced = () => loop([{ tool_choice: "required", parallel_tool_calls: false }, { tool_choice: { type: "function", function: { name: "ferry" } } }]);
const free = () => loop([{}, {}], { model: PLANNER });

async function structured() {
  const answer = await client.chat.completions.parse({
    ...asked,
    max_tokens: 100,
    messages: ASKED,
    response_format: zodResponseFormat(Trip, "trip"),
  });
  Trip.parse(answer.choices[0].message.parsed);
}

await run({ chat, stream, tools: forced, free_tools: free, structured });
