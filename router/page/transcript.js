/**
 * Transcripts: what was asked and what was written, as a JSON file and as a link.
 *
 * A link carries the transcript in its fragment, which browsers keep to themselves. What is opened may come from
 * anybody: every field is checked and copied, nothing is kept that is not known.
 */
const FORMAT = "glimprouter-transcript";
const MOST_BYTES = 8 * 2 ** 20;
const MOST_STEPS = 4096;
const MOST_LANES = 3;

export class Unreadable extends Error {}

export function transcriptOf(question, lanes, pair, askedAt) {
  return { format: FORMAT, version: 1, asked_at: askedAt, question, pair, lanes: lanes.map(lane) };
}

export function toJson(transcript) {
  return JSON.stringify(transcript, null, 2);
}

export function fromJson(json) {
  if (json.length > MOST_BYTES) throw new Unreadable("The transcript is too long to open.");
  let parsed;
  try {
    parsed = JSON.parse(json);
  } catch {
    throw new Unreadable("This is not a transcript: it can't be read as JSON.");
  }
  if (parsed?.format !== FORMAT) throw new Unreadable("This is JSON, but not a transcript of this page.");
  if (parsed.version !== 1) throw new Unreadable("This transcript was written by another version of the page.");
  return checked(parsed);
}

/** The transcript as a fragment, compressed where the browser can: `#t=z.…`, else `#t=j.…`. */
export async function toFragment(transcript) {
  const bytes = new TextEncoder().encode(JSON.stringify(transcript));
  if (typeof CompressionStream === "undefined") return `#t=j.${base64(bytes)}`;
  const squeezed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  return `#t=z.${base64(await all(squeezed))}`;
}

export const isFragment = (fragment) => fragment.startsWith("#t=");

export async function fromFragment(fragment) {
  const [, kind, text] = /^#t=([jz])\.([\w-]*)$/.exec(fragment) ?? [];
  if (!kind) throw new Unreadable("The link is damaged: it holds no transcript.");
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    if (kind === "z") {
      bytes = await all(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw")));
    }
  } catch (error) {
    if (error instanceof Unreadable) throw error;
    throw new Unreadable("The link is damaged or was cut short.");
  }
  return fromJson(new TextDecoder().decode(bytes));
}

async function all(stream) {
  const pieces = [];
  let size = 0;
  for (const reader = stream.getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) break;
    pieces.push(value);
    size += value.length;
    // A few bytes can unpack to gigabytes.
    if (size > MOST_BYTES) {
      reader.cancel().catch(() => {});
      throw new Unreadable("The transcript is too long to open.");
    }
  }
  return new Uint8Array(await new Blob(pieces).arrayBuffer());
}

function base64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

function checked(from) {
  const lanes = list(from.lanes, MOST_LANES).map(lane);
  if (!lanes.length) throw new Unreadable("The transcript is empty.");
  const asked = new Date(string(from.asked_at));
  return {
    format: FORMAT,
    version: 1,
    asked_at: Number.isNaN(asked.valueOf()) ? null : asked.toISOString(),
    question: string(from.question),
    pair: { fingerprint: string(from.pair?.fingerprint), small: string(from.pair?.small), large: string(from.pair?.large) },
    lanes,
  };
}

function lane(from) {
  return {
    model: oneOf(["glimpse", "small", "large"], from.model),
    threshold: number(from.threshold),
    token_threshold: number(from.token_threshold),
    thinks: Boolean(from.thinks),
    steps: list(from.steps, MOST_STEPS).map(step),
    pending: string(from.pending),
    answer: string(from.answer),
    usage: from.usage ? usage(from.usage) : null,
    account: from.account ? account(from.account) : null,
    finish_reason: from.finish_reason ? oneOf(["stop", "length"], from.finish_reason) : null,
    first_ms: number(from.first_ms),
    answer_ms: number(from.answer_ms),
    wall_ms: number(from.wall_ms) ?? 0,
    // What was under way when it was saved is over now.
    state: oneOf(["finished", "stopped", "failed"], from.state, "stopped"),
    problem: from.problem ? string(from.problem) : null,
  };
}

function step(from, index) {
  return {
    index,
    model: oneOf(["small", "large"], from?.model),
    entropy: number(from.entropy),
    tokens: number(from.tokens) ?? 0,
    large_tokens: number(from.large_tokens),
    cached_tokens: number(from.cached_tokens) ?? 0,
    prefix_tokens: number(from.prefix_tokens) ?? 0,
    duration_ms: number(from.duration_ms) ?? 0,
    text: string(from.text),
  };
}

function usage(from) {
  const by_model = {};
  for (const model of ["small", "large"]) {
    const used = from.by_model?.[model];
    if (used) by_model[model] = numbers(used, ["prompt_tokens", "completion_tokens", "cached_tokens"]);
  }
  return { ...numbers(from, ["prompt_tokens", "completion_tokens", "total_tokens"]), by_model };
}

function account(from) {
  const counts = ["large_token_share", "escalations", "hops", "resumed_hops", "discarded_tokens"];
  const gates = { threshold: number(from.threshold), token_threshold: number(from.token_threshold) };
  return { ...gates, ...numbers(from, counts), pair: string(from.pair) };
}

const numbers = (from, names) => Object.fromEntries(names.map((name) => [name, number(from[name]) ?? 0]));
const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (typeof value === "number" && value >= 0 && value < 1e12 ? value : null);

function list(value, most) {
  if (!Array.isArray(value)) throw new Unreadable("The transcript has another shape than this page knows.");
  if (value.length > most) throw new Unreadable("The transcript is too long to open.");
  return value;
}

function oneOf(names, value, otherwise) {
  if (names.includes(value)) return value;
  if (otherwise === undefined) throw new Unreadable("The transcript has another shape than this page knows.");
  return otherwise;
}
