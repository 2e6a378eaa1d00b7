"""The body of a request, from bytes to plain JSON values, within limits.

Routes read bodies themselves rather than have FastAPI do it: every way a body can be bad is then one kind of error in
one shape, and nothing is parsed twice.
"""

from __future__ import annotations

import json
from typing import NoReturn

from starlette.requests import Request

from router.request import Refusal


async def read(request: Request, max_bytes: int) -> bytes:
    """The whole body, given up as soon as it is known to be too long."""
    if _declared_length(request) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def parse(body: bytes) -> dict[str, object]:
    """The JSON object in `body`. Stricter than `json.loads`: no NaN or Infinity, and text that is real Unicode
    (half a surrogate pair passes as a str, but no tokenizer takes it)."""
    try:
        text = body.decode("utf-8")
        parsed = json.loads(text, parse_constant=_no_such_number)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise _not_json("it is not valid Unicode") from error
    except ValueError as error:
        raise _not_json(str(error)) from error
    except RecursionError as error:
        raise _not_json("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise _not_json("it has to be an object")
    return parsed


def _declared_length(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _not_json(why: str) -> Refusal:
    return Refusal(f"The request body can't be read as JSON: {why}.", code="invalid_json")


def _too_large(max_bytes: int) -> Refusal:
    return Refusal(
        f"The request body is larger than the {max_bytes:,} bytes accepted here.",
        status=413,
        code="request_too_large",
    )
