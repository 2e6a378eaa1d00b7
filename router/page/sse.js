/** Server-sent events, out of text that may be split anywhere: in a line, between CR and LF, in an event. */
export class Events {
  #held = "";
  #data = [];

  /** The data of the events that `text` completes. Comments and fields other than `data` are skipped. */
  push(text) {
    this.#held += text;
    const complete = [];
    // A CR at the very end may be the first half of a CRLF: it waits for what follows.
    const lines = this.#held.split(/\r\n|\n|\r(?!$)/);
    this.#held = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) complete.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        this.#data.push(line.slice(5).replace(/^ /, ""));
      }
    }
    return complete;
  }
}

/** The connection broke while it was read. */
export class Broken extends Error {}

/** The data of each event in a response's body. Leaving the loop hangs up. */
export async function* dataOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const events = new Events();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch(broken);
      if (done) return;
      yield* events.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function broken(error) {
  throw error.name === "AbortError" ? error : new Broken("The connection to the server broke.");
}
