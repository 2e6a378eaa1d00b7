"""Offered load: requests that come when they come, whether or not earlier ones are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from random import Random
from typing import Any, Self

import aiohttp
import psutil

from loadtest.arrivals import arrivals
from loadtest.command import credentials
from loadtest.questions import Question

REFUSED_PAUSE_S = 0.2
"""Before a client of a closed loop that was refused asks again."""


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one request: when it was sent (seconds on the monotonic clock), how long it took, its status
    (0: none came), and what it says beside it."""

    sent: float
    took_s: float
    status: int
    retry_after: bool = False
    error: str = ""
    escalations: int = 0

    @property
    def refused(self) -> bool:
        return self.status in (429, 503)


class Asking:
    """A server that is sent one body at a time, as cheaply as Python can: the generator shares the machine with what
    it measures."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"content-type": "application/json"} | credentials()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), headers=self._headers
        )
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._http.close()

    async def ask(self, body: bytes) -> Told:
        sent = time.monotonic()
        try:
            async with self._http.post(self._url, data=body) as response:
                said = await response.read()
                took = time.monotonic() - sent
                error = "" if response.status == 200 else said.decode(errors="replace")[:200]
                return Told(sent, took, response.status, "retry-after" in response.headers, error)
        except (aiohttp.ClientError, OSError) as broken:
            return Told(sent, time.monotonic() - sent, 0, error=f"{type(broken).__name__} {broken}")

    async def closed(self, bodies: Iterator[bytes], *, clients: int, seconds: float) -> list[Told]:
        """So many clients, each of which asks again as soon as it is answered, for so long."""
        until, told = time.monotonic() + seconds, []

        async def client() -> None:
            while time.monotonic() < until:
                told.append(await self.ask(next(bodies)))
                if told[-1].status != 200:
                    await asyncio.sleep(REFUSED_PAUSE_S)

        await asyncio.gather(*(client() for _ in range(clients)))
        return told

    async def open(self, bodies: Iterator[bytes], arrivals: Iterable[float]) -> list[Told]:
        """A request at each of `arrivals`, in seconds from now; returns once all are answered."""
        began, asked = time.monotonic(), []
        for at in arrivals:
            await asyncio.sleep(began + at - time.monotonic())
            asked.append(asyncio.create_task(self.ask(next(bodies))))
        return list(await asyncio.gather(*asked))


def poisson(rate: float, seconds: float, chance: Random) -> Iterator[float]:
    """Times, in seconds, at which a Poisson process of `rate` a second arrives within `seconds`."""
    return takewhile(lambda at: at < seconds, arrivals(lambda _at: rate, rate, chance))


class CpuShare:
    """Of this process, in cores, since the last call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._used, self._at = self._now()

    def __call__(self) -> float:
        used, at = self._now()
        share = (used - self._used) / max(1e-9, at - self._at)
        self._used, self._at = used, at
        return share

    def _now(self) -> tuple[float, float]:
        times = self._process.cpu_times()
        return times.user + times.system, time.monotonic()


def body(question: Question, model: str, **fields: Any) -> dict[str, Any]:
    """A greedy chat completion."""
    return {"model": model, "messages": list(question.messages), "temperature": 0} | fields
