/** Lanes as DOM. What a model wrote becomes text nodes and nothing else. */
import { MOST, byLarge, largeAlone, otherWriter, tally } from "./tally.js";
import { conclusion } from "./lane.js";

export const NAMES = { glimpse: "Routed", small: "Small alone", large: "Large alone" };

/** An element with properties, and children that are elements or text. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const seconds = (ms) => (ms < 9_950 ? `${(ms / 1000).toFixed(2)} s` : `${(ms / 1000).toFixed(1)} s`);
export const percent = (share) => `${Math.round(share * 100)} %`;
/** How a lane was routed. */
export const routedAt = ({ threshold, token_threshold: tokens }) =>
  `Routed at ${threshold.toFixed(2)}${tokens === null ? "" : `, tokens at ${tokens.toFixed(2)}`}`;
const whole = (number) => number.toLocaleString("en");
const brief = (ms) => (ms < 999.5 ? `${Math.round(ms)} ms` : seconds(ms));
const plural = (count, word) => `${whole(count)} ${word}${count === 1 ? "" : "s"}`;
const who = (model) => make("b", { className: `who ${model}` }, model);
const unseen = (text) => make("span", { className: "unseen" }, text);

/** Shows one lane and follows it as it grows. */
export class LaneView {
  #steps = make("ol", { className: "steps" });
  #pendingText = make("span", { className: "text" });
  #pending = make("div", { className: "step pending" }, make("span", { className: "label" }, "writing"), this.#pendingText);
  #answerLabel = make("div", { className: "label" });
  #answerText = make("div", { className: "text" });
  #answer = make("div", { className: "answer", hidden: true }, this.#answerLabel, this.#answerText);
  #state = make("p", { className: "state" });
  #log = make("div", {}, this.#steps);

  constructor(lane, titled) {
    this.lane = lane;
    this.#log.setAttribute("role", "log");
    this.#log.setAttribute("aria-live", "polite");
    this.#log.setAttribute("aria-label", `Steps, ${NAMES[lane.model].toLowerCase()}`);
    const title = titled ? make("h3", {}, NAMES[lane.model]) : null;
    this.element = make("section", { className: lane.model === "glimpse" ? "lane" : "lane alone" });
    this.element.append(...[title, this.#log, this.#pending, this.#answer, this.#state].filter(Boolean));
    if (titled) this.element.setAttribute("aria-label", NAMES[lane.model]);
  }

  /** Catch up with the lane. `threshold` is where the slider is. */
  update(threshold) {
    const { lane } = this;
    for (const step of lane.steps.slice(this.#steps.children.length)) this.#steps.append(row(step));
    this.move(threshold);
    const running = lane.state === "running";
    const pending = lane.pending.trim();
    this.#pending.hidden = !(running && !lane.answer) && !pending;
    this.#pending.firstChild.textContent = running ? "writing…" : "unfinished";
    this.#pendingText.textContent = lane.pending.trimStart();
    this.#answer.hidden = !lane.answer.trim();
    if (this.#answerText.textContent !== lane.answer.trim()) this.#answerText.textContent = lane.answer.trim();
    if (!this.#answer.hidden) this.#labelAnswer();
    this.#state.textContent = said(lane);
  }

  /** Have screen readers told of no more changes, which are the slider's, unless steps are still to come. */
  hush() {
    if (!["waiting", "running"].includes(this.lane.state)) this.#log.setAttribute("aria-live", "off");
  }

  /** Mark the steps that `threshold` would have given to the other model. */
  move(threshold) {
    for (const [index, element] of [...this.#steps.children].entries()) {
      const other = otherWriter(this.lane.steps[index], this.lane, threshold);
      element.classList.toggle("flipped", other !== null);
      element.classList.toggle("to-small", other === "small");
      element.classList.toggle("to-large", other === "large");
      element.querySelector(".flip").textContent = other ? `at ${threshold.toFixed(2)}: ${other} would write this step` : "";
    }
  }

  #labelAnswer() {
    const by = tally(this.lane).answeredBy;
    this.#answerLabel.replaceChildren("Answer", ...(by ? [who(by)] : []));
  }
}

function row(step) {
  const text = step.text.trim();
  const shown = text ? document.createTextNode(text) : make("span", { className: "nothing" }, "no visible text");
  const bar = make("div", { className: "bar" });
  bar.setAttribute("aria-hidden", "true");
  if (step.entropy !== null) bar.append(make("i"));
  const item = make(
    "li",
    { className: `step by-${step.model}` },
    make("span", { className: "label" }, make("span", { className: "index" }, `${step.index + 1}`), who(step.model)),
    make("div", { className: "text" }, shown, written(step), make("span", { className: "flip" })),
    bar,
    step.entropy === null
      ? make("span", { className: "number entropy" }, "–", unseen("entropy not measured"))
      : make("span", { className: "number entropy" }, unseen("entropy "), step.entropy.toFixed(2), unseen(" nats")),
    make("span", { className: "number tokens" }, whole(step.tokens), make("span", { className: "unit" }, " tok")),
    make("span", { className: "number time" }, brief(step.duration_ms)),
  );
  item.style.setProperty("--entropy", String(Math.min(step.entropy ?? 0, MOST)));
  return item;
}

/** Who else wrote in a step, if somebody did. */
function written(step) {
  const large = byLarge(step);
  if (large === 0 || large === step.tokens) return null;
  const [other, count] = step.model === "large" ? ["small", step.tokens - large] : ["large", large];
  return make("span", { className: "shared" }, `${other} wrote ${whole(count)} of these ${whole(step.tokens)} tokens`);
}

function said(lane) {
  if (lane.state === "waiting") return "Waits for its turn.";
  if (lane.state === "stopped") return "Stopped here.";
  if (lane.state === "failed") return lane.problem ?? "Failed here.";
  if (lane.finish_reason === "length") return "Ended by the limit on tokens.";
  return "";
}

/** The running account of a lane, into a `<dl>` and a bar. `measured` is a finished lane of the large model alone, if one ran. */
export function showTally(list, share, lane, measured) {
  const sums = tally(lane);
  const estimate = measured ? null : largeAlone(sums);
  const one = (model) =>
    cell(who(model), seconds(sums[model].ms), [
      `${plural(sums[model].tokens, "token")} in ${plural(sums[model].steps, "step")}`,
      sums[model].apart ? `, ${whole(sums[model].apart)} in ${model === "large" ? "small" : "large"}’s` : "",
      sums.answeredBy === model ? " and the answer" : "",
    ]);
  share.style.setProperty("--small-tokens", sums.small.tokens);
  share.style.setProperty("--large-tokens", sums.large.tokens);
  const total = cell("This run", seconds(sums.wall_ms), [`${plural(sums.tokens, "token")}, ${percent(sums.largeShare)} by large`]);
  const alone = measured
    ? cell("Large alone", seconds(measured.wall_ms), [`measured: ${plural(tally(measured).tokens, "token")}`])
    : estimate
      ? cell("Large alone", `≈ ${seconds(estimate.ms)}`, [
          `estimate, at its ${estimate.perToken.toFixed(1)} ms a token here`,
        ])
      : cell("Large alone", "–", ["estimated once large has written a step"]);
  list.replaceChildren(one("small"), one("large"), total, alone);
}

function cell(label, figure, notes) {
  return make(
    "div",
    {},
    make("dt", {}, label),
    make("dd", { className: "figure" }, figure),
    make("dd", {}, notes.join("")),
  );
}

/** A row for each lane of a comparison. */
export function showSummary(body, lanes) {
  body.replaceChildren(
    ...lanes.map((lane) => {
      const sums = tally(lane);
      const begun = lane.state !== "waiting";
      const name = lane.model === "glimpse" ? routedAt(lane) : NAMES[lane.model];
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, name),
        make("td", {}, conclusion(lane) || (begun ? "…" : "–")),
        make("td", {}, begun ? whole(sums.tokens) : "–"),
        make("td", {}, begun ? percent(sums.largeShare) : "–"),
        make("td", {}, begun ? seconds(sums.wall_ms) : "–"),
      );
    }),
  );
}
