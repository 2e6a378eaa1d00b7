"""OpenAI's error bodies, for everything that can go wrong.

Whoever knows that a request can't be served raises a `Refusal`; here it becomes a response. What nobody foresaw is
logged with the request's id and told to the client without its insides.
"""

from __future__ import annotations

import json
import logging
import math
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Not typing's: pydantic, which documents these, can't read that one before Python 3.12.
from typing_extensions import TypedDict

from router.observation import GONE, refused
from router.request import Refusal

log = logging.getLogger(__name__)

RENAMED = "renamed"
"""In a request's state: the names under which it gave fields that are known by another here."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
}


class Error(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    error: Error


def body(refusal: Refusal) -> ErrorBody:
    """A refusal as OpenAI words it."""
    fallback = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": refusal.message,
            "type": _TYPES.get(refusal.status, fallback),
            "param": refusal.param,
            "code": refusal.code,
        }
    }


def response(refusal: Refusal) -> Response:
    """The same as a response, with `Retry-After` where it says when."""
    headers = {}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    return Response(json.dumps(body(refusal)), refusal.status, headers, media_type="application/json")


def invalid(errors: ValidationError) -> Refusal:
    """The first thing wrong with a body, under the field's dotted path."""
    first = errors.errors(include_url=False, include_input=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])[:200]
    told = "is not a known parameter" if first["type"] == "extra_forbidden" else first["msg"]
    return Refusal(f"{param}: {told}.", param=param, code=_CODES.get(first["type"], "invalid_value"))


def unexpected() -> Refusal:
    """What a client is told of what nobody foresaw."""
    return Refusal("The server failed to answer this request.", status=500, code="internal_error")


async def on_refusal(request: Request, exc: Exception) -> Response:
    """Starlette's handler for a `Refusal`."""
    assert isinstance(exc, Refusal)
    refused(exc)
    if (given := request.scope.get("state", {}).get(RENAMED, {}).get(exc.param)) is not None:
        exc.message, exc.param = exc.message.replace(str(exc.param), given), given
    return response(exc)


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """Starlette's own: no such route, or another method's route."""
    assert isinstance(exc, HTTPException)
    told = response(
        Refusal(f"{request.method} {request.url.path[:200]}: {exc.detail}.", status=exc.status_code, code=_word(exc))
    )
    told.headers.update(exc.headers or {})
    return told


async def on_client_gone(request: Request, exc: Exception) -> Response:
    """Starlette's handler for a client that hung up: nobody reads it."""
    return Response(status_code=GONE)


def _word(exc: HTTPException) -> str:
    return HTTPStatus(exc.status_code).phrase.lower().replace(" ", "_")


class Unexpected:
    """Inside of what observes requests and names them, so that a 500 goes out through that. Starlette's own handler
    for the unforeseen sits outside, where it could not carry a request id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if scope["type"] != "http" or started:
                raise
            log.exception("%s %s failed, request %s", scope["method"], scope["path"], request_id(scope))
            await response(unexpected())(scope, receive, send)


def request_id(scope: Scope) -> str:
    """Its `x-request-id`; a dash where it has none yet."""
    return str(scope.get("state", {}).get("request_id", "-"))
