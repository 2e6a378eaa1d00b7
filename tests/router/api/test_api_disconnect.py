"""A client that hangs up closes the events, whichever way the server tells of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from starlette.types import ASGIApp, Message

from router.request import Text

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.4"},
    "http_version": "1.1",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/chat/completions",
    "raw_path": b"/v1/chat/completions",
    "root_path": "",
    "query_string": b"",
    "headers": [(b"x-request-disconnect-disabled", b"?1")],
    "client": ("127.0.0.1", 1),
    "server": ("router", 80),
}


class Connection:
    """One request as a server runs it."""

    def __init__(self, body: dict[str, object]) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        self.sent: list[Message] = []
        self.broken = False

    async def send(self, message: Message) -> None:
        if self.broken:
            raise BrokenPipeError
        self.sent.append(message)

    def hang_up(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def run(self, app: ASGIApp) -> None:
        await app(dict(SCOPE), self.incoming.get, self.send)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def connection(request: pytest.FixtureRequest, service, chat: Callable[..., dict[str, object]]) -> Connection:
    service.script = [Text("content", "a"), 60.0]
    return Connection(chat(stream=request.param))


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 -- the condition can be anything
            await asyncio.sleep(0.001)


async def test_http_disconnect_closes_the_events(app, service, connection):
    serving = asyncio.create_task(connection.run(app))
    await soon(lambda: service.requests)
    await asyncio.sleep(0.01)
    assert not service.closed.is_set()
    connection.hang_up()
    async with asyncio.timeout(30):
        await serving
        await service.closed.wait()


async def test_a_cancelled_handler_closes_the_events(app, service, connection):
    serving = asyncio.create_task(connection.run(app))
    await soon(lambda: service.requests)
    await asyncio.sleep(0.01)
    serving.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await serving
        await service.closed.wait()


@pytest.mark.parametrize("stream", [False, True])
async def test_hanging_up_before_the_first_event_closes_them_too(app, service, chat, stream):
    service.script = [60.0]
    connection = Connection(chat(stream=stream))
    serving = asyncio.create_task(connection.run(app))
    await soon(lambda: service.requests)
    connection.hang_up()
    async with asyncio.timeout(30):
        await serving
        await service.closed.wait()
    assert connection.sent[0]["status"] == 499


async def test_hanging_up_before_the_body_is_complete(app, service):
    connection = Connection({})
    connection.incoming.get_nowait()
    connection.incoming.put_nowait({"type": "http.request", "body": b'{"model"', "more_body": True})
    connection.hang_up()
    await connection.run(app)
    assert not service.requests


async def test_a_send_that_fails_closes_the_events_quietly(app, service, chat):
    service.script = [Text("content", "a"), 0.02, Text("content", "b"), 60.0]
    connection = Connection(chat(stream=True))
    serving = asyncio.create_task(connection.run(app))
    await soon(lambda: len(connection.sent) >= 2)
    connection.broken = True
    async with asyncio.timeout(30):
        await serving
        await service.closed.wait()


async def test_a_stream_is_written_as_it_comes(app, service, chat):
    service.script = [Text("content", "a"), 0.02, Text("content", "b"), service.script[-1]]
    connection = Connection(chat(stream=True))
    await connection.run(app)
    kinds = [message["type"] for message in connection.sent]
    assert kinds == ["http.response.start"] + ["http.response.body"] * 4
    assert [message["more_body"] for message in connection.sent[1:]] == [True, True, True, False]
