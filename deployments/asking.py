"""One question to a running server: the stream of its answer, and how a terminal shows it.

    small  0.03 ▏         │ 3 boxes of 4 apples
    large  1.92 ██████▍   │ 83 is the price of Q17

The bar is the entropy of the step's first token against the most it can be, ln 20.
"""

from __future__ import annotations

import json
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from deployments.first_question import said
from router.glimpse import MAX_ENTROPY

BAR = 9
COLOURS = {"small": "cyan", "large": "magenta"}

Json = Mapping[str, Any]


class AskError(Exception):
    """One line for the user."""


def body(
    question: str,
    *,
    model: str = "glimpse",
    threshold: float | None = None,
    token_threshold: float | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> dict[str, Any]:
    """The request's body; what is None is left to the server."""
    limits = {"max_tokens": max_tokens, "temperature": temperature}
    gates = {"threshold": threshold, "token_threshold": token_threshold}
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "glimpse": {"include_steps": True} | {name: gate for name, gate in gates.items() if gate is not None},
        **{name: value for name, value in limits.items() if value is not None},
    }


def whole(url: str, body: Json, key: str | None = None) -> str:
    """The server's reply in one piece, as indented JSON. Raises `AskError`."""
    with _server(url, key) as server:
        reply = server.post("/v1/chat/completions", json=body)
        _check(reply)
        return json.dumps(reply.json(), indent=2, ensure_ascii=False)


def stream(url: str, body: Json, key: str | None = None) -> Iterator[Json]:
    """The chunks of a streamed answer. Raises `AskError`."""
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    with _server(url, key) as server, server.stream("POST", "/v1/chat/completions", json=streamed) as reply:
        if reply.status_code != 200:
            reply.read()
            _check(reply)
        for line in reply.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:"):
                continue
            if data == "[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise AskError(f"the server gave up half-way: {chunk['error'].get('message')}")
            yield chunk
        raise AskError(f"what answers at {url} did not write an answer to its end")


@contextmanager
def _server(url: str, key: str | None) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        # No read timeout: the server has a deadline for every request and says so when it passes.
        with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(10, read=None)) as server:
            yield server
    except (httpx.ConnectError, httpx.ConnectTimeout):
        raise AskError(
            f"nothing answers at {url}: start the server with `make run`, or name another with --url"
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise AskError(f"--url {url} is not an address like http://127.0.0.1:8000") from None
    except httpx.HTTPError as error:
        raise AskError(f"the connection to {url} broke: {error or type(error).__name__}") from None
    except json.JSONDecodeError:
        raise AskError(f"what answers at {url} does not speak this API") from None
    except ImportError as error:
        raise AskError(f"the proxy that the environment names can't be used: {error}") from None
    except ValueError as error:  # what can be no header (a key) or no JSON (a number, half a character)
        raise AskError(f"that can't be sent: {error}") from None


def _check(reply: httpx.Response) -> None:
    if reply.status_code == 200:
        return
    hint = "; give a key with --key or GLIMPROUTER_API_KEY" if reply.status_code == 401 else ""
    raise AskError(f"the server says {reply.status_code}: {said(reply.text)}{hint}")


class Transcript:
    """Shows a stream: the steps as they end, then the answer and what it cost."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.thinks = False
        self.answer = ""
        self.rows = 0

    def show(self, chunks: Iterable[Json]) -> None:
        """Consumes the stream. A model that thinks has its answer shown below the steps; where everything is content
        the steps are the answer already."""
        began, first = time.monotonic(), None
        end: Json = {}
        usage: Json = {}
        cut = False
        with self.console.status("[dim]thinking", spinner="dots") as status:
            for chunk in chunks:
                choice = (chunk.get("choices") or [{}])[0]
                delta = choice.get("delta") or {}
                cut = cut or choice.get("finish_reason") == "length"
                if delta.get("reasoning_content") or delta.get("content"):
                    first = first or time.monotonic() - began
                self.thinks = self.thinks or bool(delta.get("reasoning_content"))
                told = chunk.get("glimpse") or {}
                # The end of the thinking is a step without a word.
                step = told.get("step")
                if step and step["text"].strip() and not (self.thinks and self.answer):
                    self.row(step)
                if piece := delta.get("content"):
                    self.answer += piece
                    if self.thinks:
                        status.update("[dim]answering")
                if "threshold" in told or "hops" in told:
                    end = told
                usage = chunk.get("usage") or usage
        if self.answer.strip() and (self.thinks or not self.rows):
            self.console.print()
            self.console.print(Text(self.answer.strip(), style="bold"))
        self.console.print()
        if cut:
            self.console.print(Text("Cut by the limit on tokens.", style="yellow"))
        self.console.print(Text(cost(end, usage, time.monotonic() - began, first), style="dim"))

    def row(self, step: Json) -> None:
        """One step: who wrote it, how sure its first token was, its text."""
        self.rows += 1
        label = Text(f"{step['model']:5} {meter(step.get('entropy'))} │ ", style=COLOURS.get(step["model"], ""))
        gutter = " " * (len(label) - 2) + "│ "
        lines = [line for line in step["text"].strip().splitlines() if line.strip()] or [""]
        if self.console.is_terminal:
            width = max(20, self.console.width - len(label))
            lines = [part for line in lines for part in textwrap.wrap(line, width) or [""]]
        for number, line in enumerate(lines):
            lead = label if number == 0 else Text(gutter, style="dim")
            self.console.print(Text.assemble(lead, (line, "" if step["model"] == "small" else "bold")))


def meter(entropy: float | None) -> str:
    """An entropy in nats, and as a bar."""
    if entropy is None:
        return f"   – {'':{BAR}}"
    eighths = round(min(entropy / MAX_ENTROPY, 1.0) * BAR * 8)
    bar = "█" * (eighths // 8) + (chr(0x2590 - eighths % 8) if eighths % 8 else "")
    return f"{entropy:4.2f} {bar:{BAR}}"


def cost(end: Json, usage: Json, seconds: float, first: float | None) -> str:
    """What an answer cost, in one line."""
    parts = []
    if by_model := usage.get("by_model"):
        parts += [f"{model} {used['completion_tokens']} tokens" for model, used in by_model.items()]
    elif usage:
        parts.append(f"{usage['completion_tokens']} tokens")
    if end.get("large_token_share") is not None:
        parts.append(f"large share {end['large_token_share']:.0%}")
    for name in ("escalations", "hops"):
        if name in end:
            parts.append(f"{end[name]} {name}" if end[name] != 1 else f"1 {name[:-1]}")
    if end.get("threshold") is not None:
        parts.append(f"threshold {end['threshold']:g}")
    if "token_threshold" in end:
        parts.append(f"token threshold {end['token_threshold']:g}")
    if first is not None:
        parts.append(f"first word after {first:.2f} s")
    return " · ".join([*parts, f"{seconds:.2f} s"])
