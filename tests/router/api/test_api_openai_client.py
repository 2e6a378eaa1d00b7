"""The official client works unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from router.request import Refusal, Text

ASK = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
async def official(app) -> AsyncIterator[openai.AsyncOpenAI]:
    http_client = openai.DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app))
    async with openai.AsyncOpenAI(
        base_url="http://router/v1", api_key="none", http_client=http_client, max_retries=0
    ) as client:
        yield client


async def test_whole(official):
    reply = await official.chat.completions.create(model="glimpse", messages=ASK, temperature=0, max_tokens=100)
    message = reply.choices[0].message
    assert message.content == "Vier: «4» 🙂"
    assert message.reasoning_content == "Two and two.\n\n"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens_details.reasoning_tokens == 33
    assert reply.usage.total_tokens == 82
    assert reply._request_id


async def test_an_answer_can_be_sent_back(official, service):
    message = (await official.chat.completions.create(model="glimpse", messages=ASK)).choices[0].message
    await official.chat.completions.create(model="glimpse", messages=[*ASK, message.model_dump(), *ASK])
    assert service.requests[1].messages[1] == {"role": "assistant", "content": "Vier: «4» 🙂"}


async def test_streamed(official):
    stream = await official.chat.completions.create(
        model="glimpse",
        messages=ASK,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"glimpse": {"include_steps": True}},
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Two and two.\n\n"
    assert "".join(delta.content or "" for delta in deltas) == "Vier: «4» 🙂"
    assert [chunk.glimpse["step"]["index"] for chunk in chunks if "step" in getattr(chunk, "glimpse", {})] == [0, 1]
    assert chunks[-1].usage.total_tokens == 82


async def test_the_streaming_helper(official):
    async with official.chat.completions.stream(model="glimpse", messages=ASK) as stream:
        reply = await stream.get_final_completion()
    assert reply.choices[0].message.content == "Vier: «4» 🙂"


async def test_text_completions(official):
    reply = await official.completions.create(model="large", prompt="2 + 2 =")
    assert reply.choices[0].text.endswith("«4» 🙂")
    stream = await official.completions.create(model="large", prompt="2 + 2 =", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == reply.choices[0].text


async def test_models(official):
    assert [model.id async for model in official.models.list()] == ["glimpse", "small", "large"]
    assert (await official.models.retrieve("glimpse")).id == "glimpse"


async def test_errors_are_the_clients_own(official, service):
    with pytest.raises(openai.BadRequestError) as bad:
        await official.chat.completions.create(model="glimpse", messages=ASK, n=2)
    assert bad.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        await official.chat.completions.create(model="gpt-5", messages=ASK)
    service.script = [Refusal("Busy.", status=429)]
    with pytest.raises(openai.RateLimitError):
        await official.chat.completions.create(model="glimpse", messages=ASK)
    service.script = [Text("content", "a"), Refusal("Too late.", status=504)]
    with pytest.raises(openai.APIError, match="Too late"):
        [chunk async for chunk in await official.chat.completions.create(model="glimpse", messages=ASK, stream=True)]
