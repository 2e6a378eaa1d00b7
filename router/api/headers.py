"""How many headers, and how long, a request may have: more than any client sends, less than would cost anything."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from router.api import errors
from router.observation import refused
from router.request import Refusal

MAX_HEADERS = 100
MAX_BYTES = 32 * 1024
"""Of all names and values together."""


class HeaderLimits:
    """Refuses requests with more, before anything looks at them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = scope["headers"]
            size = sum(len(name) + len(value) for name, value in headers) + len(scope.get("query_string", b""))
            if len(headers) > MAX_HEADERS or size > MAX_BYTES:
                message = f"The request has more than {MAX_HEADERS} headers, or {MAX_BYTES:,} bytes of them."
                refusal = Refusal(message, status=431, code="headers_too_large")
                refused(refusal)
                await errors.response(refusal)(scope, receive, send)
                return
        await self._app(scope, receive, send)
