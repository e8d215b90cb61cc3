// Vercel's AI SDK over its provider for compatible servers, which speaks chat completions.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { LIMIT, MODEL, PLANNER, QUESTION, TOOLS, Trip, URL, assert, called, run, streamed } from "./checks.mjs";

const provider = createOpenAICompatible({ name: "here", baseURL: URL, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true });
const asked = { model: provider(MODEL), prompt: QUESTION, temperature: 0, maxOutputTokens: LIMIT, maxRetries: 0 };

async function chat() {
  const answer = await generateText(asked);
  assert(answer.text, JSON.stringify(answer.response?.body));
  return answer.text;
}

async function stream() {
  const pieces = [];
  for await (const piece of streamText(asked).textStream) pieces.push(piece);
  streamed(pieces, await chat());
}

async function tools() {
  const seen = [];
  const given = Object.fromEntries(
    Object.entries(TOOLS).map(([name, inputSchema]) => [
      name,
      tool({
        description: name,
        inputSchema,
        execute: async (input) => {
          seen.push(name);
          return called(name, input);
        },
      }),
    ]),
  );
  const answer = await generateText({ ...asked, model: provider(PLANNER), tools: given, stopWhen: stepCountIs(4) });
  assert(answer.text && seen.join() === "weather,ferry", `${answer.text} ${seen}`);
  const chosen = { type: "tool", toolName: "ferry" };
  const must = await generateText({ ...asked, maxOutputTokens: 200, tools: given, toolChoice: chosen });
  assert(must.toolCalls.length >= 1, "no call");
}

async function structured() {
  const answer = await generateText({ ...asked, maxOutputTokens: 100, output: Output.object({ schema: Trip }) });
  Trip.parse(answer.output);
}

await run({ chat, stream, tools, structured });
