from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner

from deployments.asking import meter
from deployments.cli import app


def chunk(delta: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta or {}}], **more}


def step(index: int, model: str, entropy: float | None, text: str) -> dict[str, Any]:
    return {"step": {"index": index, "model": model, "entropy": entropy, "tokens": 4, "text": text}}


END = {"threshold": 1.0, "large_token_share": 0.25, "escalations": 1, "hops": 3}
USAGE = {"completion_tokens": 16, "by_model": {"small": {"completion_tokens": 12}, "large": {"completion_tokens": 4}}}
THINKING = [
    chunk({"reasoning_content": "First.\n\n"}, glimpse=step(0, "small", 0.03, "First.\n\n")),
    chunk({"reasoning_content": "Hard\nbit.\n\n"}, glimpse=step(1, "large", 2.1, "Hard\nbit.\n\n")),
    chunk({"content": "It is "}),
    chunk({"content": "12."}, glimpse=step(2, "large", None, "It is 12.")),
    chunk(glimpse=END),
    {"choices": [], "usage": USAGE},
]
PLAIN = [
    chunk({"content": "First.\n\n"}, glimpse=step(0, "small", 0.03, "First.\n\n")),
    chunk({"content": "It is 12."}, glimpse=step(1, "small", 0.1, "It is 12.")),
    chunk(glimpse=END),
    {"choices": [], "usage": USAGE},
]


class Scripted(ThreadingHTTPServer):
    """Answers every request with the same chunks, or with an error."""

    chunks: list[dict[str, Any]]
    status = 200
    whole = True
    asked: dict[str, Any]


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_POST(self) -> None:
        self.server.asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status != 200 or not self.server.asked.get("stream"):
            self.wfile.write(json.dumps(self.server.chunks[0]).encode())
            return
        for one in self.server.chunks:
            self.wfile.write(f"data: {json.dumps(one)}\n\n".encode())
        if self.server.whole:
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(("127.0.0.1", 0), Handler) as scripted:
        threading.Thread(target=scripted.serve_forever, daemon=True).start()
        yield scripted
        scripted.shutdown()


def ask(server: Scripted, *options: str) -> tuple[int, list[str]]:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    done = CliRunner().invoke(app, ["ask", "How many?", "--url", url, *options])
    return done.exit_code, done.output.splitlines()


def test_steps_then_the_answer_then_what_it_cost(server: Scripted) -> None:
    server.chunks = THINKING
    status, lines = ask(server, "--threshold", "1", "--max-tokens", "99", "--model", "glimpse")
    assert status == 0
    assert server.asked["glimpse"] == {"include_steps": True, "threshold": 1.0}
    assert (server.asked["max_tokens"], server.asked["stream_options"]) == (99, {"include_usage": True})
    assert lines[0].startswith("small 0.03 ")
    assert lines[0].endswith("│ First.")
    assert lines[1].startswith("large 2.10 ██████")
    assert lines[1].endswith("│ Hard")
    assert lines[2].strip() == "│ bit."
    assert lines[3:5] == ["", "It is 12."]
    assert lines[-1].startswith("small 12 tokens · large 4 tokens · large share 25% · 1 escalation · 3 hops")


def test_a_pair_that_does_not_think_has_its_answer_in_the_steps_and_only_there(server: Scripted) -> None:
    server.chunks = PLAIN
    _, lines = ask(server)
    assert sum("It is 12." in line for line in lines) == 1
    assert lines[1].startswith("small 0.10")


def test_an_answer_without_steps_is_shown_as_it_is(server: Scripted) -> None:
    server.chunks = [chunk({"content": "Twelve."}), {"choices": [], "usage": {"completion_tokens": 2}}]
    _, lines = ask(server)
    assert "Twelve." in lines


def test_errors_take_one_line_and_say_what_to_do(server: Scripted) -> None:
    server.status, server.chunks = 401, [{"error": {"message": "no key"}}]
    assert ask(server) == (
        1,
        ["glimprouter: the server says 401: no key; give a key with --key or GLIMPROUTER_API_KEY"],
    )
    server.status, server.chunks = 200, [THINKING[0], {"error": {"message": "no replica left"}}]
    status, lines = ask(server)
    assert (status, lines[-1]) == (1, "glimprouter: the server gave up half-way: no replica left")
    server.chunks = THINKING
    done = CliRunner().invoke(app, ["ask", "How many?", "--url", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "start the server with `make run`" in done.output
    assert done.output.count("\n") == 1


def test_a_reply_that_was_cut_says_so(server: Scripted) -> None:
    server.chunks = [*THINKING[:2], {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}]
    _, lines = ask(server)
    assert "Cut by the limit on tokens." in lines
    server.chunks = THINKING
    assert not any("limit" in line for line in ask(server)[1])


def test_a_question_is_what_it_says(server: Scripted) -> None:
    server.chunks = THINKING
    url = f"http://127.0.0.1:{server.server_address[1]}"
    assert CliRunner().invoke(app, ["ask", "-", "--url", url], input="How many?\n").exit_code == 0
    assert server.asked["messages"][-1]["content"] == "How many?"
    done = CliRunner().invoke(app, ["ask", "-", "--url", url], input=" \n")
    assert (done.exit_code, done.output) == (1, "glimprouter: there is no question\n")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
def test_no_proxy_stands_between_this_machine_and_itself(
    server: Scripted, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "elsewhere.example")
    server.chunks = THINKING
    assert ask(server)[0] == 0


def test_what_a_terminal_has_no_character_for_is_no_failure(server: Scripted) -> None:
    server.chunks = THINKING
    url = f"http://127.0.0.1:{server.server_address[1]}"
    command = [sys.executable, "-m", "deployments.cli", "ask", "How many?", "--url", url]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"It is 12." in done.stdout


def test_an_answer_without_its_end_is_none(server: Scripted) -> None:
    for chunks in (THINKING[:2], []):
        server.chunks, server.whole = chunks, False
        status, lines = ask(server)
        assert status == 1
        assert lines[-1].endswith("did not write an answer to its end")


@pytest.mark.parametrize("options", [("--threshold", "inf"), ("--temperature", "inf"), ("--key", "glr_“x”")])
def test_what_cannot_be_sent_is_one_line(server: Scripted, options: tuple[str, str]) -> None:
    server.chunks = THINKING
    status, lines = ask(server, *options)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("glimprouter: that can't be sent: ")


def test_json_gives_the_whole_reply(server: Scripted) -> None:
    server.chunks = [{"id": "x", "choices": []}]
    status, lines = ask(server, "--json")
    assert status == 0
    assert json.loads("\n".join(lines)) == {"id": "x", "choices": []}
    assert "stream" not in server.asked


@pytest.mark.parametrize(("entropy", "cells"), [(0.0, 0), (1.5, 4.5), (2.9957, 9), (9.0, 9)])
def test_the_bar_is_full_at_the_entropy_of_twenty_equal_choices(entropy: float, cells: float) -> None:
    shown = meter(entropy)
    assert len(shown) == len(meter(None)) == 14
    assert shown.count("█") == int(cells)
