// What every client in JavaScript is asked to do; each result is a line of JSON.
import { z } from "zod";

export const [URL, MODEL, PLANNER] = process.argv.slice(2);
export const LIMIT = 24;
export const QUESTION = "What is the weather in Ghent, and when does the ferry leave?";
export const ASKED = [{ role: "user", content: QUESTION }];
const Place = z.object({ town: z.enum(["Ghent", "Bruges"]) });
export const TOOLS = {
  weather: z.object({ place: Place }),
  ferry: z.object({ day: z.number().int().min(1).max(7), express: z.boolean() }),
};
export const Trip = z.object({ place: Place, days: z.number().int().min(1).max(9), mood: z.enum(["good", "bad"]) });
const RESULTS = { weather: "7 degrees", ferry: "at three" };

export function assert(holds, what) {
  if (!holds) throw new Error(what);
}

export function called(name, input) {
  TOOLS[name].parse(input);
  return RESULTS[name];
}

export function streamed(pieces, whole) {
  assert(pieces.filter((piece) => piece).length > 1, JSON.stringify(pieces));
  assert(pieces.join("") === whole, JSON.stringify([pieces, whole]));
}

export async function run(checks) {
  for (const [check, body] of Object.entries(checks)) {
    try {
      await body();
      console.log(JSON.stringify({ check, ok: true }));
    } catch (error) {
      console.log(JSON.stringify({ check, ok: false, what: `${error?.name}: ${String(error?.message ?? error).slice(0, 600)}` }));
    }
  }
}
