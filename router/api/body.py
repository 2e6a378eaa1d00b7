"""The body of a request, from bytes to plain JSON values, within limits.

Routes read bodies themselves rather than have FastAPI do it: every way a body can be bad is then one kind of error in
one shape, and nothing is parsed twice.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import NoReturn

from starlette.requests import Request

from router.request import Refusal

NAMES, NAMES_EACH = 200, 20
"""Names of fields that a body may have, and so many more for each of its items: more than anybody has use for."""

_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}:]', re.DOTALL)
"""Strings, so that brackets in them don't count, brackets, and what ends a field's name. A string without an end takes
all the rest: were its end looked for from each quote in it, a body of 100 kB would keep a router busy for minutes."""


async def read(request: Request, max_bytes: int, within_s: float) -> bytes:
    """The whole body, given up as soon as it is known to be too long, or to come too slowly."""
    if _declared_length(request) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(within_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        message = f"The request body did not arrive within {within_s:g} s."
        raise Refusal(message, status=408, code="request_timeout") from None
    return bytes(body)


def measure(body: bytes, max_depth: int, max_items: int) -> None:
    """Refuses a body that is nested too deeply, or that lists or names too much, before it is parsed: parsing takes ten
    times its memory. `max_items` bounds the objects that stand in lists of the outermost one, as messages do."""
    max_names = NAMES + NAMES_EACH * max_items
    few = body.count(b"[") + body.count(b"{") <= min(max_depth, max_items)
    if few and body.count(b":") <= max_names:
        return
    depth = items = names = 0
    for found in _STRUCTURE.finditer(body):
        match found[0][:1]:
            case b"{" | b"[":
                depth += 1
                items += depth == 3 and found[0] == b"{"
                if depth > max_depth:
                    raise _not_json(f"it is nested more than {max_depth} deep")
                if items > max_items:
                    raise Refusal(
                        f"messages: up to {max_items:,} are accepted here.",
                        status=413,
                        param="messages",
                        code="request_too_large",
                    )
            case b"}" | b"]":
                depth -= 1
            case b":":
                names += 1
                if names > max_names:
                    raise _not_json("it has too many fields")


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
