import { dataOf } from "./sse.js";

/** The server said no, in one line. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What the server serves: `{pair, models: {small, large}, thinks, handover, threshold, token_threshold}`. */
export async function served(key) {
  const response = await reach("v1/models", { headers: headers(key) });
  if (!response.ok) throw await refusal(response);
  const { data } = await response.json();
  return data.find((card) => card.id === "glimpse").glimpse;
}

/**
 * Ask `model` ("glimpse", "small" or "large"); `gates`: `{threshold, token_threshold}` where it is routed.
 * Yields, in order, `{text, voice}`, `{step}`, `{account}` and `{usage}`.
 * Aborting `signal`, or leaving the loop, hangs up; the server then stops both engines.
 */
export async function* ask({ question, model, gates, key, signal }) {
  const glimpse = { include_steps: true, ...(model === "glimpse" ? gates : {}) };
  const response = await reach("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify({
      model,
      messages: [{ role: "user", content: question }],
      stream: true,
      stream_options: { include_usage: true },
      glimpse,
    }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  for await (const data of dataOf(response.body)) {
    if (data === "[DONE]") return;
    yield* read(JSON.parse(data));
  }
  throw new Refused("The connection ended before the answer did.");
}

function* read(chunk) {
  if (chunk.error) throw new Refused(String(chunk.error.message));
  const delta = chunk.choices?.[0]?.delta ?? {};
  if (delta.reasoning_content) yield { voice: "reasoning", text: delta.reasoning_content };
  if (delta.content) yield { voice: "content", text: delta.content };
  const { step, ...account } = chunk.glimpse ?? {};
  if (step) yield { step };
  if ("hops" in account) yield { account, finishReason: chunk.choices[0].finish_reason };
  if (chunk.usage) yield { usage: chunk.usage };
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server can't be reached.");
  }
}

async function refusal(response) {
  const told = await response
    .json()
    .then((body) => String(body.error.message))
    .catch(() => `The server answered ${response.status}.`);
  const wait = response.headers.get("retry-after");
  return new Refused(wait ? `${told} Try again in ${wait} s.` : told, response.status);
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}
