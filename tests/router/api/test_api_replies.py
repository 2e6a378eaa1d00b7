"""Whole (not streamed) answers, right to the field, and what the service was asked for."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from router.request import Routing, Sampling

USAGE = {
    "prompt_tokens": 42,
    "completion_tokens": 40,
    "total_tokens": 82,
    "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 33},
    "by_model": {
        "small": {"prompt_tokens": 20, "completion_tokens": 30, "cached_tokens": 16},
        "large": {"prompt_tokens": 22, "completion_tokens": 10, "cached_tokens": 0},
    },
}
ACCOUNT = {
    "threshold": 1.0,
    "large_token_share": 0.25,
    "escalations": 1,
    "hops": 3,
    "resumed_hops": 0,
    "discarded_tokens": 2,
    "pair": "9f2c",
}
STEPS = [
    {
        "index": 0,
        "model": "small",
        "entropy": 0.41,
        "tokens": 30,
        "cached_tokens": 16,
        "prefix_tokens": 20,
        "duration_ms": 212.4,
        "text": "Two and two.\n\n",
    },
    {
        "index": 1,
        "model": "large",
        "entropy": None,
        "tokens": 10,
        "cached_tokens": 0,
        "prefix_tokens": 50,
        "duration_ms": 80.0,
        "text": "Vier: «4» 🙂",
    },
]


async def test_chat_completion_has_openais_shape(client, service, chat):
    response = await client.post("/v1/chat/completions", json=chat())
    reply = response.json()
    assert response.status_code == 200
    assert reply.pop("id") == service.requests[0].id
    assert service.requests[0].id.startswith("chatcmpl-")
    assert abs(reply.pop("created") - time.time()) < 5
    assert reply == {
        "object": "chat.completion",
        "model": "glimpse",
        "system_fingerprint": "9f2c",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Vier: «4» 🙂",
                    "reasoning_content": "Two and two.\n\n",
                    "refusal": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }
    assert service.closed.is_set()


async def test_text_completion_has_openais_shape(client, service):
    reply = (await client.post("/v1/completions", json={"model": "small", "prompt": [1, 2, 3]})).json()
    assert reply.pop("id") == service.requests[0].id
    assert service.requests[0].id.startswith("cmpl-")
    assert reply.pop("created")
    assert reply == {
        "object": "text_completion",
        "model": "small",
        "system_fingerprint": "9f2c",
        "choices": [{"index": 0, "text": "Two and two.\n\nVier: «4» 🙂", "logprobs": None, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert service.requests[0].prompt == (1, 2, 3)
    assert service.requests[0].messages is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_steps_are_told_where_asked_for(client, service, chat, path):
    body = chat() if "chat" in path else {"model": "glimpse", "prompt": "2 + 2 ="}
    reply = (await client.post(path, json={**body, "glimpse": {"include_steps": True}})).json()
    assert reply["glimpse"] == {**ACCOUNT, "steps": STEPS}
    assert service.requests[0].glimpses


async def test_unusual_ends_are_told_only_when_they_happen(client, service, chat):
    odd = replace(service.script[-1], large_share_spent=True, degraded="large pool asleep", finish_reason="length")
    service.script = [odd]
    reply = (await client.post("/v1/chat/completions", json=chat(glimpse={"include_steps": True}))).json()
    assert reply["glimpse"]["large_share_spent"] is True
    assert reply["glimpse"]["degraded"] == "large pool asleep"
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_a_pair_that_does_not_think_has_no_reasoning(client, service, chat):
    service.unthinking()
    service.script = service.script[3:]
    reply = (await client.post("/v1/chat/completions", json=chat())).json()
    assert reply["choices"][0]["message"]["reasoning_content"] is None


async def test_every_supported_field_reaches_the_service(client, service, chat):
    body = chat(
        model="glimpse-0.9",
        temperature=1,
        top_p=0.9,
        top_k=20,
        min_p=0.1,
        seed=-7,
        stop=["a", "b"],
        max_tokens=100,
        max_completion_tokens=100,
        timeout=2.5,
        user="u",
        metadata={"run": "1"},
        store=False,
        glimpse={"threshold": 0, "token_threshold": 2, "answer_by": "small", "max_large_share": 1},
    )
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    asked = service.requests[0]
    assert asked.sampling == Sampling(temperature=1.0, top_p=0.9, top_k=20, min_p=0.1, seed=-7, stop=("a", "b"))
    assert asked.routing == Routing("routed", 0.0, token_threshold=2.0, answer_by="small", max_large_share=1.0)
    assert (asked.max_tokens, asked.timeout_s, asked.streaming, asked.tenant) == (100, 2.5, False, "")


@pytest.mark.parametrize(
    ("fields", "routing"),
    [
        ({"model": "glimpse"}, Routing("routed")),
        ({"model": "glimpse-0.9"}, Routing("routed", threshold=0.9)),
        ({"model": "glimpse-3", "glimpse": {"threshold": 0.5}}, Routing("routed", threshold=0.5)),
        ({"model": "small"}, Routing("small")),
        ({"model": "large", "glimpse": {"include_steps": True}}, Routing("large")),
        ({"model": "large", "glimpse": {"threshold": None}}, Routing("large")),
        ({"model": "glimpse", "glimpse": {"random_share": 0.3}}, Routing("random", random_share=0.3)),
    ],
)
async def test_model_and_extension_choose_the_routing(client, service, chat, fields, routing):
    assert (await client.post("/v1/chat/completions", json=chat(**fields))).status_code == 200
    assert service.requests[0].routing == routing


async def test_messages_become_what_templates_read(client, service, chat):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a<|im_end|>"}, {"type": "text", "text": "</think>"}]},
        {"role": "assistant", "content": None, "reasoning_content": "old", "refusal": None, "tool_calls": []},
        {"role": "user", "content": "", "name": "Ada"},
    ]
    assert (await client.post("/v1/chat/completions", json=chat(messages=messages))).status_code == 200
    assert service.requests[0].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a<|im_end|>\n</think>"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "", "name": "Ada"},
    )


async def test_parameters_that_ask_for_nothing_are_let_through(client, chat):
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "logprobs": False,
        "top_logprobs": None,
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "reasoning_effort": None,
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "stop": None,
        "stream": None,
        "stream_options": None,
        "glimpse": None,
        "metadata": None,
    }
    assert (await client.post("/v1/chat/completions", json=chat(**neutral))).status_code == 200


@pytest.mark.parametrize(
    ("prompt", "asked"), [("a", "a"), (["a"], "a"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([0], (0,))]
)
async def test_prompts(client, service, prompt, asked):
    body = {"model": "glimpse", "prompt": prompt, "best_of": 1, "echo": False, "suffix": None}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    assert service.requests[0].prompt == asked
