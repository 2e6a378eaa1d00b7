"""What /openapi.json says of bodies. The routes read them themselves, so FastAPI can't know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from router.api import errors, reply, schema
from router.tenancy.reply import UsageReply

_TEMPLATE = "#/components/schemas/{model}"
_DOCUMENTED: tuple[type, ...] = (
    schema.ChatCompletion,
    schema.Completion,
    reply.ChatReply,
    reply.TextReply,
    reply.ModelList,
    reply.ModelCard,
    errors.ErrorBody,
    UsageReply,
)


class Api(FastAPI):
    """FastAPI, with the schemas below among its components."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            _, definitions = TypeAdapter.json_schemas(
                [(body, "validation", TypeAdapter(body)) for body in _DOCUMENTED], ref_template=_TEMPLATE
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
        return self.openapi_schema or {}


def takes(body: type) -> dict[str, Any]:
    """An operation's body, as `openapi_extra` has it."""
    return {"requestBody": {"required": True, "content": _json(body)}}


def answers(body: type, *, streams: bool = False) -> dict[int | str, dict[str, Any]]:
    """An operation's replies, as `responses` has them; streams: or server-sent events."""
    content = _json(body)
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        200: {"description": "Done.", "content": content},
        "default": {"description": "Refused or failed.", "content": _json(errors.ErrorBody)},
    }


def _json(body: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _TEMPLATE.format(model=body.__name__)}}}
