import { Refused, ask, served } from "./server.js";
import { Broken } from "./sse.js";
import { examplesFor } from "./examples.js";
import { begin, conclusion, take } from "./lane.js";
import { MOST, tally, whatIf } from "./tally.js";
import { Unreadable, fromFragment, fromJson, isFragment, toFragment, toJson, transcriptOf } from "./transcript.js";
import { LaneView, make, percent, routedAt, seconds, showSummary, showTally } from "./view.js";

const $ = (id) => document.getElementById(id);

/** Past this length some programs cut links. */
const LONG_LINK = 30_000;

/** What is shown: `question`, `lanes` and their `views`, `pair` (fingerprint and names), `askedAt`. */
let shown = null;
/** What the server serves, once it has said so; and the hang-up of the run under way, if one is. */
let server = null;
let hangUp = null;
/** Whether the reader chose the threshold; until then it is the server's. */
let chosen = false;

const threshold = () => $("threshold").valueAsNumber;

/** The thresholds to ask with, only where they are not the server's: who names none gets its tenant's own, or what the
 * server has moved it to. */
function gates() {
  const tokens = $("by-token").checked ? $("token-threshold").valueAsNumber : MOST;
  return {
    ...(chosen ? { threshold: threshold() } : {}),
    ...(tokens === (server.token_threshold ?? MOST) ? {} : { token_threshold: tokens }),
  };
}

// Asking

async function run(question, models) {
  if (hangUp) return;
  say("");
  hangUp = new AbortController();
  if (!server && !(await meet())) {
    hangUp = null;
    return;
  }
  if (!chosen) place(server.threshold);
  const asked = gates();
  const effective = { threshold: server.threshold, token_threshold: server.token_threshold, ...asked };
  const lanes = models.map((model) => begin({ model, gates: effective, thinks: server.thinks }));
  const pair = { fingerprint: server.pair, ...server.models };
  show({ question, lanes, pair, askedAt: new Date().toISOString() });
  $("origin").textContent = models.length > 1 ? "Side by side" : routedAt(lanes[0]);
  history.replaceState(null, "", location.pathname + location.search);
  busy(true);
  try {
    for (const lane of lanes) if (!(await write(lane, question, asked, hangUp.signal))) break;
  } finally {
    for (const lane of lanes) if (lane.state === "waiting") lane.state = "stopped";
    hangUp = null;
    busy(false);
    draw();
    $("status").textContent = summary(lanes);
  }
  await heed(lanes);
}

/** Take in by what pair and at what threshold it was routed, where that is not what was foreseen: the tenant may have a
 * threshold of its own, and what is served may have changed. */
async function heed(lanes) {
  const account = lanes.find((lane) => lane.account)?.account;
  const routed = lanes.find((lane) => lane.model === "glimpse");
  if (lanes.length === 1 && routed) $("origin").textContent = routedAt(routed);
  if (!chosen && routed?.account) place(routed.threshold);
  const mine = shown;
  if (!account || account.pair === server.pair || !(await meet())) return;
  if (account.pair === server.pair) mine.pair = { fingerprint: server.pair, ...server.models };
}

/** Write one lane to its end; whether the next should be asked for. */
async function write(lane, question, gates, signal) {
  const began = performance.now();
  lane.state = "running";
  redraw();
  const clock = setInterval(() => {
    lane.wall_ms = performance.now() - began;
    redraw();
  }, 200);
  try {
    for await (const told of ask({ question, model: lane.model, gates, key: $("key").value, signal })) {
      take(lane, told, performance.now() - began);
      redraw();
    }
    lane.state = "finished";
  } catch (error) {
    lane.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) {
      lane.problem = problemOf(error);
      say(lane.problem, error);
    }
  } finally {
    clearInterval(clock);
  }
  return lane.state === "finished";
}

/** Learn what is served; whether that worked. */
async function meet() {
  const first = !server;
  try {
    server = await served($("key").value);
  } catch (error) {
    say(problemOf(error), error);
    return false;
  }
  $("pair").textContent = `Served here: pair ${server.pair}, small ${server.models.small}, large ${server.models.large}.`;
  // Models that read each other's text hand each other whole steps only.
  $("tokens-row").hidden = server.handover === "text";
  if (first) {
    $("by-token").checked = server.token_threshold !== null;
    $("token-threshold").value = server.token_threshold ?? 0.5;
  }
  const buttons = examplesFor(server).map((question) => {
    const button = make("button", { type: "button", title: question }, question);
    button.addEventListener("click", () => {
      $("question").value = question;
      run(question, ["glimpse"]);
    });
    return button;
  });
  $("examples").replaceChildren(...buttons);
  $("examples").hidden = false;
  return true;
}

function problemOf(error) {
  if ([Refused, Broken, Unreadable].some((kind) => error instanceof kind)) return error.message;
  console.error(error);
  return "The server sent something this page can't read.";
}

/** One plain line about what went wrong; none where the text is empty. */
function say(text, error) {
  $("problem").textContent = text;
  if (error?.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
}

function busy(is) {
  const held = document.activeElement;
  $("stop").hidden = !is;
  for (const button of [$("ask"), $("compare"), $("open"), ...$("examples").children]) button.disabled = is;
  // Whoever pressed a button that can't be pressed now finds the one that can under their fingers.
  if (is && (held.disabled || held === $("again"))) $("stop").focus();
  if (!is && held === $("stop")) $("ask").focus();
}

// Showing

function show(next) {
  const compared = next.lanes.length > 1;
  shown = { ...next, views: next.lanes.map((lane) => new LaneView(lane, compared)) };
  $("run").hidden = false;
  $("run").classList.toggle("compared", compared);
  $("summary").hidden = !compared;
  $("asked").textContent = $("asked").title = next.question;
  $("lanes").replaceChildren(...shown.views.map((view) => view.element));
  $("link-row").hidden = true;
  $("status").textContent = "";
  draw();
}

/** Many events may come between two frames; they are drawn once. */
let drawing = 0;
function redraw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    draw();
  });
}

function draw() {
  const follow = hangUp && nearEnd();
  for (const view of shown.views) view.update(threshold());
  const routed = shown.lanes.find((lane) => lane.model === "glimpse") ?? shown.lanes[0];
  const alone = shown.lanes.find((lane) => lane.model === "large" && lane !== routed && lane.state === "finished");
  showTally($("tally"), $("share"), routed, alone);
  if (shown.lanes.length > 1) showSummary($("summary").tBodies[0], shown.lanes);
  showWhatIf();
  if (follow) $("status").scrollIntoView({ block: "nearest" });
}

function nearEnd() {
  const bottom = $("status").getBoundingClientRect().bottom;
  return bottom > 0 && bottom < innerHeight + 160;
}

function summary(lanes) {
  if (lanes.length > 1) return lanes.every(({ state }) => state === "finished") ? "All three finished." : "Stopped before all three finished.";
  const [lane] = lanes;
  const sums = tally(lane);
  const large = lane.steps.filter(({ model }) => model === "large").length;
  const over = { finished: "Finished", stopped: "Stopped", failed: "Failed" }[lane.state];
  const said = lane.state === "finished" ? conclusion(lane) : "";
  return `${over}: ${lane.steps.length} steps, ${large} by the large model, ${sums.tokens} tokens, ${seconds(sums.wall_ms)}. ${said}`;
}

// The threshold

/** Put the slider at `value`. */
function place(value) {
  $("threshold").value = String(Math.min(value ?? 1, MOST));
  moved();
}

function moved() {
  const value = threshold();
  $("run").style.setProperty("--tau", String(value));
  $("threshold-value").textContent = `${value.toFixed(2)} nats`;
  $("threshold").setAttribute("aria-valuetext", `${value.toFixed(2)} nats`);
  if (!shown) return;
  for (const view of shown.views) view.move(value);
  showWhatIf();
}

function showWhatIf() {
  const lane = shown.lanes.find(({ model }) => model === "glimpse");
  const moves = lane && whatIf(lane, threshold());
  const differs = Boolean(lane) && Math.abs(threshold() - lane.threshold) > 0.004;
  let text = "Drag the threshold to see which steps would have gone the other way.";
  if (!lane) text = "Nothing was routed here.";
  else if (differs && !moves.count) text = `At ${threshold().toFixed(2)} every step would have gone the same way.`;
  else if (differs) {
    const parts = [];
    if (moves.moved.large) parts.push(`${moves.moved.large} to large`);
    if (moves.moved.small) parts.push(`${moves.moved.small} to small`);
    text =
      `At ${threshold().toFixed(2)} instead of ${lane.threshold.toFixed(2)}: ${moves.count} of ${lane.steps.length} steps would have ` +
      `gone the other way, ${parts.join(" and ")}; large’s share of the tokens ${percent(moves.shareBefore)} → ${percent(moves.shareAfter)}.`;
  }
  if ($("what-if").textContent !== text) sayLater(text);
  $("what-if").textContent = text;
  $("again").hidden = !differs || Boolean(hangUp);
  $("again").textContent = `Ask again at ${threshold().toFixed(2)}`;
}

/** What the what-if says, for screen readers, once the slider rests. */
let saying = 0;
function sayLater(text) {
  clearTimeout(saying);
  saying = setTimeout(() => ($("what-if-said").textContent = text), 700);
}

// Transcripts

const transcript = () => transcriptOf(shown.question, shown.lanes, shown.pair, shown.askedAt);

function open(read, origin) {
  if (hangUp) return;
  const lane = read.lanes.find(({ model }) => model === "glimpse");
  show({ question: read.question, lanes: read.lanes, pair: read.pair, askedAt: read.asked_at });
  if (lane) place(lane.threshold);
  $("origin").textContent = origin;
  say("");
}

function dated(read) {
  return read.asked_at ? `of ${new Date(read.asked_at).toLocaleString()}` : "without a date";
}

async function openFragment() {
  if (!isFragment(location.hash)) return false;
  try {
    const read = await fromFragment(location.hash);
    open(read, `Transcript ${dated(read)}, opened from a link; nothing was asked now`);
    $("question").value = read.question;
  } catch (error) {
    say(problemOf(error));
  }
  return true;
}

async function openFile(file) {
  try {
    const read = fromJson(await file.text());
    open(read, `Transcript ${dated(read)}, opened from ${file.name}; nothing was asked now`);
    $("question").value = read.question;
  } catch (error) {
    say(problemOf(error));
  }
}

async function openExample() {
  try {
    const response = await fetch("page/example.json");
    const read = fromJson(await response.text());
    if (shown) return;
    open(read, read.asked_at ? "An example, recorded with the embedded pair" : "An illustration of what a run looks like; ask to see a real one");
  } catch (error) {
    say(problemOf(error));
  }
}

function download() {
  const url = URL.createObjectURL(new Blob([toJson(transcript())], { type: "application/json" }));
  const time = (shown.askedAt ?? "example").replace(/[:.]/g, "-");
  make("a", { href: url, download: `glimprouter-${time}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function copyLink() {
  const url = new URL(location.href);
  url.hash = await toFragment(transcript());
  const long = url.href.length > LONG_LINK ? " It is long, and some programs cut such links: a file is safer." : "";
  $("link-text").value = url.href;
  $("link-row").hidden = false;
  try {
    await navigator.clipboard.writeText(url.href);
    $("status").textContent = `Link copied.${long}`;
  } catch {
    $("link-text").select();
    $("status").textContent = `Copy the link below.${long}`;
  }
}

// Controls

function submit(models) {
  const question = $("question").value.trim();
  const tokens = $("token-threshold").valueAsNumber;
  if (!question) $("question").focus();
  else if ($("by-token").checked && !(tokens >= 0 && tokens <= MOST)) {
    say(`The token threshold is a number of nats from 0 to ${MOST}.`);
    $("token-threshold").focus();
  } else run(question, models);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(["glimpse"]);
});
$("compare").addEventListener("click", () => submit(["small", "large", "glimpse"]));
$("stop").addEventListener("click", () => hangUp?.abort());
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(["glimpse"]);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hangUp?.abort();
});
$("threshold").addEventListener("input", () => {
  chosen = true;
  for (const view of shown?.views ?? []) view.hush();
  moved();
});
$("again").addEventListener("click", () => {
  chosen = true;
  run(shown.question, shown.lanes.map(({ model }) => model));
});
$("download").addEventListener("click", download);
$("link").addEventListener("click", copyLink);
$("open").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  if (file) openFile(file);
  $("file").value = "";
});
addEventListener("hashchange", openFragment);

place(1);
if (!(await openFragment())) await openExample();
await meet();
