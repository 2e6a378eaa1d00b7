"""A service that knows one answer, for the real API in front of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from router.request import Event, Finished, ModelUsage, Pair, Refusal, Request, StepWritten, Text

PAIR = Pair("9f2c", {"small": "s", "large": "l"}, True, "ids", 4096, 1.0, "large")
USED = {"small": ModelUsage(20, 30, 0), "large": ModelUsage(20, 10, 0)}


class OneAnswer:
    """Knows one answer, and refuses one request in `refused`."""

    pair = PAIR

    def __init__(self) -> None:
        self.refused: int | None = None
        self.asked = 0

    async def write(self, request: Request) -> AsyncGenerator[Event]:
        self.asked += 1
        if self.refused and self.asked % self.refused == 0:
            raise Refusal("busy", status=429, code="overloaded", retry_after_s=1.0)
        yield Text("reasoning", "Two and two.\n\n")
        yield StepWritten(0, "small", 0.4, 30, 0, 20, 12.0, "Two and two.\n\n")
        yield Text("content", "4")
        yield Finished("stop", USED, 30, 0, 1.0, 1, 3, 0, "9f2c")

    async def ready(self) -> str | None:
        return None
