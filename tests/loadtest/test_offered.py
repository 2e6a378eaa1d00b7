import asyncio
import json
from itertools import pairwise, repeat
from random import Random

import pytest
from aiohttp import web

from loadtest.offered import Asking, Told, poisson


@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0])
def test_arrivals_are_a_poisson_process(rate: float) -> None:
    seconds = 2000 / rate
    arrivals = list(poisson(rate, seconds, Random(1)))
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    assert len(arrivals) == pytest.approx(2000, rel=0.1)
    assert mean == pytest.approx(1 / rate, rel=0.1)
    # Of an exponential distribution, 1/e is longer than the mean.
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.37, abs=0.05)
    assert arrivals == sorted(arrivals)
    assert max(arrivals) < seconds


class Answering:
    """A server that answers as told, one after another; the last goes on for ever."""

    def __init__(self, *answers: web.Response, takes_s: float = 0.0) -> None:
        self.answers, self.takes_s, self.bodies = list(answers), takes_s, []

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{port}"

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        await asyncio.sleep(self.takes_s)
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=given.status, text=given.text, headers=given.headers)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    server = Answering(web.Response(text="{}"), takes_s=0.5)
    async with server as url, Asking(url) as asking:
        told = await asking.open(repeat(json.dumps({"n": 1}).encode()), [0.0, 0.01, 0.02])
    assert [one.status for one in told] == [200, 200, 200]
    assert max(one.sent for one in told) < min(one.sent + one.took_s for one in told)


async def test_refusals_and_their_retry_after_are_told() -> None:
    refused = web.Response(status=429, text="busy", headers={"Retry-After": "1"})
    async with Answering(refused, web.Response(status=503, text="none")) as url, Asking(url) as asking:
        first, second = await asking.ask(b"{}"), await asking.ask(b"{}")
    assert (first.refused, first.retry_after, first.error) == (True, True, "busy")
    assert (second.refused, second.retry_after) == (True, False)


async def test_a_server_that_is_gone_is_told() -> None:
    async with Answering(web.Response()) as url:
        pass
    async with Asking(url) as asking:
        told = await asking.ask(b"{}")
    assert (told.status, told.refused) == (0, False)
    assert "Connect" in told.error


async def test_clients_of_a_closed_loop_ask_again() -> None:
    server = Answering(web.Response(text="{}"), takes_s=0.05)
    async with server as url, Asking(url) as asking:
        told: list[Told] = await asking.closed(repeat(b"{}"), clients=3, seconds=0.2)
    assert len(told) == len(server.bodies) >= 6
