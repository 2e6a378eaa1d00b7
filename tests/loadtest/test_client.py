import asyncio

import httpx
import pytest
from scripted import Scripted

from loadtest.client import Client, Step, each
from loadtest.command import MeasuringError

ASKED = [{"role": "user", "content": "Question 1?"}]


async def test_reply(server: Scripted) -> None:
    async with Client("http://scripted", transport=server.transport) as client:
        reply = await client.chat(ASKED, "glimpse", glimpse={"include_steps": True}, max_tokens=None)
    assert (reply.content, reply.tokens, reply.large_tokens, reply.escalations) == ("The answer is 1.", 100, 40, 1)
    assert [step.model for step in reply.steps] == ["small", "large"]
    assert "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize(("model", "told", "by_large"), [("small", None, 0), ("large", None, 9), ("small", 4, 4)])
def test_what_the_large_model_wrote_of_a_step(model: str, told: int | None, by_large: int) -> None:
    assert Step(0, model, 0.1, 9, 1.0, "so.\n\n", large_tokens=told).by_large == by_large


async def test_busy_server_is_asked_again(server: Scripted) -> None:
    server.busy = 3
    async with Client("http://scripted", transport=server.transport) as client:
        assert (await client.chat(ASKED, "large")).tokens == 100
        server.busy = 100
        with pytest.raises(MeasuringError, match="answered 429: busy"):
            await client.chat(ASKED, "large")


async def test_refusal_is_one_line_in_the_servers_words(server: Scripted) -> None:
    async with Client("http://scripted", transport=server.transport) as client:
        with pytest.raises(MeasuringError, match=r"/v1/chat/completions answered 400: messages: cannot be this."):
            await client.chat([{"role": "user", "content": ""}], "large")


async def test_no_server_is_one_line() -> None:
    def gone(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with Client("http://nowhere", transport=httpx.MockTransport(gone)) as client:
        with pytest.raises(MeasuringError, match=r"http://nowhere does not answer .*is the server up"):
            await client.served()


async def test_each_keeps_the_order_and_the_bound() -> None:
    running = most = 0

    async def double(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (10 - n))
        running -= 1
        return 2 * n

    assert await each(range(10), double, concurrency=3, label="", quiet=True) == [2 * n for n in range(10)]
    assert most == 3


async def test_each_passes_on_the_first_failure() -> None:
    async def fail(n: int) -> int:
        raise MeasuringError(f"number {n}")

    with pytest.raises(MeasuringError, match="number 0"):
        await each(range(4), fail, concurrency=2, label="", quiet=True)
