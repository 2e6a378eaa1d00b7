/** The most the renormalised entropy of twenty tokens can be, in nats, rounded up: the length of every bar. */
export const MOST = 3;

/** Tokens of a step that the large model wrote; a step is counted as that model's which wrote most of it. */
export function byLarge(step) {
  return step.large_tokens ?? (step.model === "large" ? step.tokens : 0);
}

/**
 * Steps, tokens and milliseconds by model, `timed` of its tokens in the latter, `apart` of them in the other's steps.
 * Steps carry their own; the answer's tokens are what the server's usage
 * has beyond the steps, and its time is measured in the browser.
 */
export function tally(lane) {
  const by = { small: none(), large: none() };
  for (const step of lane.steps) {
    const tokens = { large: byLarge(step), small: step.tokens - byLarge(step) };
    by[step.model].steps += 1;
    by[step.model].ms += step.duration_ms;
    by[step.model].timed += step.tokens;
    for (const model of ["small", "large"]) {
      by[model].tokens += tokens[model];
      if (model !== step.model) by[model].apart += tokens[model];
    }
  }
  let answeredBy = null;
  for (const model of ["small", "large"]) {
    const beyond = (lane.usage?.by_model?.[model]?.completion_tokens ?? 0) - by[model].tokens;
    if (beyond <= 0) continue;
    by[model].tokens += beyond;
    if (lane.answer) {
      answeredBy = model;
      by[model].ms += lane.answer_ms ?? 0;
      by[model].timed += beyond;
    }
  }
  const tokens = by.small.tokens + by.large.tokens;
  return { ...by, answeredBy, tokens, wall_ms: lane.wall_ms, largeShare: tokens ? by.large.tokens / tokens : 0 };
}

/**
 * What the large model alone would have taken for these tokens, from this lane's own milliseconds per large token:
 * `{ms, perToken}`, or null before the large model wrote anything.
 */
export function largeAlone(sums) {
  if (!sums.large.timed || !sums.large.ms) return null;
  const perToken = sums.large.ms / sums.large.timed;
  return { ms: perToken * sums.tokens, perToken };
}

/** The model that would have written the step at `threshold`, if that is not the one that did; else null. */
export function otherWriter(step, lane, threshold) {
  if (step.entropy === null || lane.threshold === null) return null;
  const then = gate(step.entropy, threshold);
  return then !== gate(step.entropy, lane.threshold) && then !== step.model ? then : null;
}

/** What `threshold` would have changed about a lane's finished steps, others' text being what it is. */
export function whatIf(lane, threshold) {
  const sums = tally(lane);
  const moved = { small: 0, large: 0 };
  let largeTokens = sums.large.tokens;
  for (const step of lane.steps) {
    const other = otherWriter(step, lane, threshold);
    if (!other) continue;
    moved[other] += 1;
    largeTokens += other === "large" ? step.tokens - byLarge(step) : -byLarge(step);
  }
  return {
    moved,
    count: moved.small + moved.large,
    shareBefore: sums.largeShare,
    shareAfter: sums.tokens ? largeTokens / sums.tokens : 0,
  };
}

function gate(entropy, threshold) {
  return entropy <= threshold ? "small" : "large";
}

function none() {
  return { steps: 0, tokens: 0, ms: 0, timed: 0, apart: 0 };
}
