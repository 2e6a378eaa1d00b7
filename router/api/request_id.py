"""`x-request-id` on every response, errors too: the client's own where it gave a usable one, else a new one.

Plain ASGI, because Starlette's BaseHTTPMiddleware stands between a stream and the client that hangs up on it.
"""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"

_USABLE = re.compile(r"[\x20-\x7e]{1,200}")


class RequestId:
    """Puts the id into the scope's state, for logs, and onto the response.

    stamp: whether to set the response header. False behind a proxy that adds it itself (Ray Serve's does, always, and
        would make it two): then only the state is set.
    """

    def __init__(self, app: ASGIApp, stamp: bool = True) -> None:
        self._app, self._stamp = app, stamp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        id = given if _USABLE.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = id

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        await self._app(scope, receive, stamped if self._stamp else send)
