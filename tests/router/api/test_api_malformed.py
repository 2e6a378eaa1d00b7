"""Bodies that are refused: the status, the field that is named, and a server that goes on answering."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.api.body import measure
from router.api.routes import build
from router.request import Refusal

USER = {"role": "user", "content": "2 + 2?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
HUGE = 10**30

CHAT = [
    ({"messages": []}, 400, "messages"),
    ({"messages": None}, 400, "messages"),
    ({"messages": "2 + 2?"}, 400, "messages"),
    ({"messages": ["2 + 2?"]}, 400, "messages.0"),
    ({"messages": [USER] * 11}, 413, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "user", "content": []}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
    ({"messages": [USER, {"role": "user", "content": [IMAGE]}]}, 400, "messages.1.content"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages.0.content"),
    ({"messages": [{"role": "tool", "content": "4"}]}, 400, "messages.0.role"),
    ({"messages": [{**USER, "wieght": 2}]}, 400, "messages.0.wieght"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, 400, "messages.0.tool_calls"),
    ({"model": None}, 400, "model"),
    ({"model": 7}, 400, "model"),
    ({"model": "gpt-5"}, 404, "model"),
    ({"model": ""}, 404, "model"),
    ({"model": "glimpse-"}, 404, "model"),
    ({"model": "glimpse--1"}, 404, "model"),
    ({"model": "glimpse-inf"}, 404, "model"),
    ({"model": "glimpse-1e5"}, 404, "model"),
    ({"model": "glimpse-٣"}, 404, "model"),
    ({"model": "glimpse-" + "9" * 400}, 404, "model"),
    ({"glimpse": {"threshold": -0.1}}, 400, "glimpse.threshold"),
    ({"glimpse": {"threshold": "1"}}, 400, "glimpse.threshold"),
    ({"glimpse": {"threshold": True}}, 400, "glimpse.threshold"),
    ({"glimpse": {"threshold": HUGE**20}}, 400, "glimpse.threshold"),
    ({"glimpse": {"token_threshold": -0.1}}, 400, "glimpse.token_threshold"),
    ({"glimpse": {"answer_by": "medium"}}, 400, "glimpse.answer_by"),
    ({"glimpse": {"max_large_share": 1.5}}, 400, "glimpse.max_large_share"),
    ({"glimpse": {"random_share": -1}}, 400, "glimpse.random_share"),
    ({"glimpse": {"random_share": 0.5, "threshold": 1}}, 400, "glimpse.threshold"),
    ({"glimpse": {"random_share": 0.5, "token_threshold": 1}}, 400, "glimpse.token_threshold"),
    ({"model": "glimpse-1", "glimpse": {"random_share": 0.5}}, 400, "glimpse.random_share"),
    ({"glimpse": {"include_steps": "yes"}}, 400, "glimpse.include_steps"),
    ({"glimpse": {"treshold": 1.0}}, 400, "glimpse.treshold"),
    ({"glimpse": 1.0}, 400, "glimpse"),
    ({"model": "small", "glimpse": {"threshold": 1.0}}, 400, "glimpse.threshold"),
    ({"model": "small", "glimpse": {"token_threshold": 1.0}}, 400, "glimpse.token_threshold"),
    ({"model": "large", "glimpse": {"answer_by": "large"}}, 400, "glimpse.answer_by"),
    ({"model": "large", "glimpse": {"max_large_share": 0.5}}, 400, "glimpse.max_large_share"),
    ({"model": "small", "glimpse": {"random_share": 0.5}}, 400, "glimpse.random_share"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -1}, 400, "max_tokens"),
    ({"max_tokens": 1.5}, 400, "max_tokens"),
    ({"max_tokens": "100"}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "max_tokens"),
    ({"max_tokens": HUGE}, 400, "max_tokens"),
    ({"max_completion_tokens": 0}, 400, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_completion_tokens"),
    ({"seed": HUGE}, 400, "seed"),
    ({"seed": 1.5}, 400, "seed"),
    ({"temperature": 2.1}, 400, "temperature"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"),
    ({"temperature": HUGE**20}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"top_p": 1.1}, 400, "top_p"),
    ({"top_k": -2}, 400, "top_k"),
    ({"min_p": 1.1}, 400, "min_p"),
    ({"timeout": 0}, 400, "timeout"),
    ({"stop": ""}, 400, "stop"),
    ({"stop": ["a", ""]}, 400, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
    ({"stop": [1]}, 400, "stop"),
    ({"stop": {"a": 1}}, 400, "stop"),
    ({"stream": 1}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        400,
        "stream_options.continuous_usage_stats",
    ),
    ({"metadata": {"a": 1}}, 400, "metadata.a"),
    ({"user": 5}, 400, "user"),
    ({"temprature": 0}, 400, "temprature"),
    ({"n": 2}, 400, "n"),
    ({"n": True}, 400, "n"),
    ({"presence_penalty": 0.5}, 400, "presence_penalty"),
    ({"frequency_penalty": -0.5}, 400, "frequency_penalty"),
    ({"frequency_penalty": False}, 400, "frequency_penalty"),
    ({"repetition_penalty": 1.1}, 400, "repetition_penalty"),
    ({"logit_bias": {"1": 5}}, 400, "logit_bias"),
    ({"logprobs": True}, 400, "logprobs"),
    ({"top_logprobs": 5}, 400, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, 400, "tools"),
    ({"tool_choice": "auto"}, 400, "tool_choice"),
    ({"functions": [{}]}, 400, "functions"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"modalities": ["text", "audio"]}, 400, "modalities"),
    ({"audio": {"voice": "ash"}}, 400, "audio"),
    ({"prediction": {"type": "content"}}, 400, "prediction"),
    ({"reasoning_effort": "low"}, 400, "reasoning_effort"),
    ({"parallel_tool_calls": True}, 400, "parallel_tool_calls"),
    ({"store": True}, 400, "store"),
]

TEXT = [
    ({}, 400, "prompt"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": ["a", "b"]}, 400, "prompt"),
    ({"prompt": [[1], [2]]}, 400, "prompt"),
    ({"prompt": [1, "a"]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [HUGE]}, 400, "prompt"),
    ({"prompt": "a", "messages": [USER]}, 400, "messages"),
    ({"prompt": "a", "best_of": 2}, 400, "best_of"),
    ({"prompt": "a", "echo": True}, 400, "echo"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "logprobs": 1}, 400, "logprobs"),
    ({"prompt": "a", "max_completion_tokens": 5}, 400, "max_completion_tokens"),
]

NOT_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"temperature": NaN}',
    b'{"temperature": -Infinity}',
    b"\xff\xfe{}",
    b'{"user": "\xff"}',
    b'{"user": "\\ud800"}',
    b'{"\\uD800": 1}',
    b'{"seed": ' + b"9" * 5_000 + b"}",
    b'{"metadata": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
]


def named(case: object) -> str:
    return json.dumps(case)[:60] if isinstance(case, dict) else str(case)


@pytest.mark.parametrize(("fields", "status", "param"), CHAT, ids=named)
async def test_bad_chat_bodies_name_the_field(client, service, chat, fields, status, param):
    response = await client.post("/v1/chat/completions", json=chat(**fields))
    assert_refused(response, status, param)
    assert not service.requests


@pytest.mark.parametrize(("fields", "status", "param"), TEXT, ids=named)
async def test_bad_completion_bodies_name_the_field(client, service, fields, status, param):
    response = await client.post("/v1/completions", json={"model": "glimpse", **fields})
    assert_refused(response, status, param)
    assert not service.requests


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:30]))
async def test_what_is_not_json_is_refused(client, service, chat, body):
    assert_refused(await client.post("/v1/chat/completions", content=body), 400, None)
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_numbers_that_overflow_are_refused(client):
    body = b'{"model": "glimpse", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}'
    assert_refused(await client.post("/v1/chat/completions", content=body), 400, "temperature")


@pytest.mark.parametrize("field", ["model", "messages"])
async def test_required_fields(client, chat, field):
    body = chat()
    del body[field]
    response = await client.post("/v1/chat/completions", json=body)
    assert_refused(response, 400, field)
    assert response.json()["error"]["code"] == "missing_required_parameter"


async def test_answer_by_needs_a_pair_that_thinks(client, service, chat):
    service.unthinking()
    response = await client.post("/v1/chat/completions", json=chat(glimpse={"answer_by": "small"}))
    assert_refused(response, 400, "glimpse.answer_by")


async def test_a_body_of_names_is_refused_before_they_are_looked_at(client, service):
    body = json.dumps({f"field{n}": n for n in range(1000)})
    response = await client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"
    assert "fields" in response.json()["error"]["message"]
    assert not service.requests


async def test_colons_in_a_text_are_no_fields(client, chat):
    response = await client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": ": " * 2000}]))
    assert response.status_code == 200


async def test_a_refusal_names_the_field_as_it_was_given(client, service, chat):
    service.script = [Refusal("max_tokens: up to 10 are allowed.", param="max_tokens")]
    for name in ("max_tokens", "max_completion_tokens"):
        error = (await client.post("/v1/chat/completions", json=chat(**{name: 99}))).json()["error"]
        assert (error["param"], error["message"]) == (name, f"{name}: up to 10 are allowed.")


async def test_codes_tell_unknown_from_unsupported(client, chat):
    async def code(**fields: object) -> str:
        response = await client.post("/v1/chat/completions", json=chat(**fields))
        return response.json()["error"]["code"]

    assert await code(temprature=1) == "unknown_parameter"
    assert await code(presence_penalty=1) == "unsupported_parameter"
    assert await code(temperature=9) == "invalid_value"
    assert await code(model="gpt-5") == "model_not_found"


async def test_a_body_that_says_it_is_too_large_is_not_read(client, chat):
    response = await client.post("/v1/chat/completions", json=chat(user="x" * 20_000))
    assert_refused(response, 413, None)


async def test_a_body_that_turns_out_too_large_is_dropped(client):
    async def pieces():
        for _ in range(100):
            yield b"x" * 1_000

    assert_refused(await client.post("/v1/chat/completions", content=pieces()), 413, None)


async def test_nesting_and_lists_are_measured_before_anything_is_parsed(client, monkeypatch):
    def parse(*arguments, **more):
        raise AssertionError("it was parsed")

    monkeypatch.setattr("router.api.body.parse", parse)
    deep = b'{"messages": [{"content": "[[", "x": ' + b"[" * 40 + b"]" * 40 + b"}]}"
    assert_refused(await client.post("/v1/chat/completions", content=deep), 400, None)
    many = b'{"messages": [' + b", ".join([b'{"role": "user"}'] * 11) + b"]}"
    assert_refused(await client.post("/v1/chat/completions", content=many), 413, "messages")


@given(st.lists(st.sampled_from(['"', "\\", "[", "]", "{", "}", "a", ":", ","]), max_size=60).map("".join))
def test_brackets_in_strings_do_not_count(text):
    body = json.dumps({"model": text, "messages": [{"content": text}]}).encode()
    measure(body, max_depth=3, max_items=1)
    with pytest.raises(Refusal, match="nested more than 2"):
        measure(body, max_depth=2, max_items=0)


def test_a_string_without_an_end_takes_all_the_rest():
    """And is looked through once: from each of its quotes this one would take hours."""
    measure(b"[]" * 40 + b'"' + b"[" * 99 + b'\\"[' * 500_000, max_depth=3, max_items=1)


async def test_a_body_that_does_not_arrive_is_given_up(service, chat):
    app = build(lambda: service, body_timeout_s=0.02)

    async def pieces():
        yield b'{"model": '
        await asyncio.sleep(5)
        yield b'"glimpse"}'

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        assert_refused(await client.post("/v1/chat/completions", content=pieces()), 408, None)


@pytest.mark.parametrize("headers", [[("x-a", "a" * 40_000)], [(f"x-{n}", "a") for n in range(120)]])
async def test_too_many_headers(client, headers):
    assert_refused(await client.get("/v1/models", headers=headers), 431, None)


async def test_long_field_names_are_not_sent_back_whole(client, chat):
    response = await client.post("/v1/chat/completions", json=chat(**{"x" * 9_000: 1}))
    assert response.status_code == 400
    assert len(response.content) < 1_000


def assert_refused(response, status, param):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]
    assert error["code"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert response.headers["x-request-id"]
