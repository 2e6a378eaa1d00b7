"""Streams: the order of chunks, their fields, silence, and failures at either side of the first event."""

from __future__ import annotations

import json

import httpx
import pytest

from router.request import Finished, Refusal, Text

STREAM = {"stream": True}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def parsed(response: httpx.Response) -> list[dict[str, object]]:
    """The stream's chunks, which have to end with [DONE]."""
    *chunks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks if not chunk.startswith(":")]


async def test_chat_chunks_have_openais_shape_and_order(client, service, chat):
    response = await client.post("/v1/chat/completions", json=chat(**STREAM))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in response.headers
    chunks = parsed(response)
    head = {
        "id": service.requests[0].id,
        "object": "chat.completion.chunk",
        "created": chunks[0]["created"],
        "model": "glimpse",
        "system_fingerprint": "9f2c",
    }

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    assert chunks == [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Two and "}),
        chunk({"reasoning_content": "two.\n\n"}),
        chunk({"content": "Vier: «4» 🙂"}),
        chunk({}, "stop"),
    ]
    assert service.requests[0].streaming
    assert service.closed.is_set()


async def test_text_chunks_have_openais_shape_and_order(client, service):
    response = await client.post("/v1/completions", json={"model": "glimpse", "prompt": "2 + 2 =", **WITH_USAGE})
    chunks = parsed(response)
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]
        for text, reason in [("Two and ", None), ("two.\n\n", None), ("Vier: «4» 🙂", None), ("", "stop")]
    ] + [[]]


async def test_usage_comes_last_and_is_null_before(client, chat):
    *chunks, last = parsed(await client.post("/v1/chat/completions", json=chat(**WITH_USAGE)))
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 82
    assert last["usage"]["by_model"]["small"]["completion_tokens"] == 30


async def test_steps_come_as_they_end_and_the_account_at_the_end(client, chat):
    body = chat(**WITH_USAGE, glimpse={"include_steps": True})
    chunks = parsed(await client.post("/v1/chat/completions", json=body))
    assert [list(chunk.get("glimpse", ())) for chunk in chunks[:6]] == [[], [], [], ["step"], [], ["step"]]
    assert chunks[3]["glimpse"]["step"] == {
        "index": 0,
        "model": "small",
        "entropy": 0.41,
        "tokens": 30,
        "cached_tokens": 16,
        "prefix_tokens": 20,
        "duration_ms": 212.4,
        "text": "Two and two.\n\n",
    }
    assert chunks[6]["choices"][0]["finish_reason"] == "stop"
    assert chunks[6]["glimpse"] == {
        "threshold": 1.0,
        "large_token_share": 0.25,
        "escalations": 1,
        "hops": 3,
        "resumed_hops": 0,
        "discarded_tokens": 2,
        "pair": "9f2c",
    }


async def test_text_cannot_break_the_framing(client, service, chat):
    text = 'a\n\ndata: [DONE]\r\n\u2028\x85"\\ 日本'
    service.script = [Text("content", text), service.script[-1]]
    chunks = parsed(await client.post("/v1/chat/completions", json=chat(**STREAM)))
    assert chunks[1]["choices"][0]["delta"] == {"content": text}


async def test_silence_is_filled_with_comments(client, service, chat):
    service.script = [service.script[0], 0.2, *service.script[1:]]
    response = await client.post("/v1/chat/completions", json=chat(**STREAM))
    assert 2 <= response.text.count(": keep-alive\n\n") <= 4
    assert len(parsed(response)) == 5


async def test_no_comment_where_there_is_no_silence(client, service, chat):
    service.script = [Text("content", "a"), *[0.02, Text("content", "b")] * 5, service.script[-1]]
    response = await client.post("/v1/chat/completions", json=chat(**STREAM))
    assert ": keep-alive" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_before_the_first_event_is_a_status(client, service, chat, stream):
    service.script = [Refusal("All busy.", status=429, code="overloaded", retry_after_s=0.2)]
    response = await client.post("/v1/chat/completions", json=chat(stream=stream))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json() == {
        "error": {"message": "All busy.", "type": "rate_limit_error", "param": None, "code": "overloaded"}
    }


@pytest.mark.parametrize(
    ("failure", "message", "code"),
    [
        (Refusal("Too late.", status=504, code="deadline"), "Too late.", "deadline"),
        (RuntimeError("secret"), "The server failed to answer this request.", "internal_error"),
        (ConnectionResetError("secret"), "The server failed to answer this request.", "internal_error"),
    ],
)
async def test_failure_half_way_is_an_error_event_without_done(client, service, chat, failure, message, code):
    service.script = [Text("content", "a"), failure]
    response = await client.post("/v1/chat/completions", json=chat(**STREAM))
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert "secret" not in response.text
    last = json.loads(response.text.split("\n\n")[-2].removeprefix("data: "))
    assert last == {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    assert service.closed.is_set()


async def test_events_that_stop_short_are_an_error(client, service, chat):
    service.script = [event for event in service.script if not isinstance(event, Finished)]
    streamed = await client.post("/v1/chat/completions", json=chat(**STREAM))
    assert "internal_error" in streamed.text
    assert "[DONE]" not in streamed.text
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 500
    service.script = []
    assert (await client.post("/v1/chat/completions", json=chat(**STREAM))).status_code == 500
