import { MOST } from "./tally.js";

/**
 * One model's run: a plain object, so that a live run and an opened transcript are the same thing.
 *
 * model      "glimpse" (routed), "small" or "large"
 * threshold  the gate in nats; null where nothing is routed; token_threshold  that of tokens; null where there is none
 * thinks     whether an answer follows the steps; else the last step is the answer
 * steps      as the server told them
 * pending    text that belongs to no finished step yet
 * answer     what was said after the thinking
 * usage, account, finish_reason  the server's own figures, at the end
 * first_ms, answer_ms, wall_ms   measured here: until the first text, writing the answer, altogether
 * state      "waiting", "running", "finished", "stopped" (by the reader) or "failed", with `problem`
 */
export function begin({ model, gates, thinks }) {
  return {
    model,
    threshold: model === "glimpse" ? gates.threshold : null,
    token_threshold: model === "glimpse" ? ofTokens(gates) : null,
    thinks,
    steps: [],
    pending: "",
    answer: "",
    usage: null,
    account: null,
    finish_reason: null,
    first_ms: null,
    answer_ms: null,
    wall_ms: 0,
    state: "waiting",
    problem: null,
  };
}

/** Take in what the server told, `now` milliseconds after it was asked. */
export function take(lane, told, now) {
  lane.wall_ms = now;
  if (told.text !== undefined) {
    lane.first_ms ??= now;
    if (lane.thinks && told.voice === "content") {
      lane.answer += told.text;
      lane.answer_ms = now - lane.thought_ms;
    } else {
      lane.pending += told.text;
      lane.thought_ms = now;
    }
  } else if (told.step) {
    lane.steps.push(told.step);
    lane.thought_ms = now;
    // The text of a step was sent ahead of the step; more of the next may have come along.
    lane.pending = lane.pending.slice(told.step.text.length);
  } else if (told.account) {
    lane.account = told.account;
    lane.threshold = told.account.threshold ?? lane.threshold;
    lane.token_threshold = ofTokens(told.account);
    lane.finish_reason = told.finishReason;
    if (lane.answer) lane.answer_ms = now - lane.thought_ms;
  } else if (told.usage) {
    lane.usage = told.usage;
  }
}

/** The threshold of tokens; null where no entropy is above it. */
function ofTokens({ token_threshold }) {
  return (token_threshold ?? MOST) < MOST ? token_threshold : null;
}

/** What the lane says in the end: the answer, or the last step of a model that does not think apart. */
export function conclusion(lane) {
  return (lane.answer || (lane.thinks ? "" : lane.steps.at(-1)?.text) || "").trim();
}
