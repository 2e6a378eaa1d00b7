"""The HTTP API: which path does what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar
from uuid import uuid4

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from router.api import body, errors, reply, schema
from router.api.disconnect import until_gone
from router.api.headers import HeaderLimits
from router.api.openapi import Api, answers, takes
from router.api.request_id import RequestId
from router.api.stream import Chunks, EventStream, TextChunks
from router.page import routes as page
from router.request import MODELS, Refusal, Service
from router.telemetry import Observer
from router.tenancy import routes as accounts
from router.tenancy.gate import Gate, Guard
from router.tenancy.ledger import Ledger
from router.tenancy.tenant import ANYONE, Caller

B = TypeVar("B", schema.ChatCompletion, schema.Completion)
MAX_DEPTH = 32
"""No body that is accepted is nested nearly as deep."""

Whole = Callable[[reply.Head, reply.Written, bool], Mapping[str, object]]


def build(
    service: Callable[[], Service],
    *,
    max_body_bytes: int = 4 * 2**20,
    max_messages: int = 2_000,
    body_timeout_s: float = 30.0,
    keep_alive_s: float = 15.0,
    stamp_request_id: bool = True,
    gate: Callable[[], Gate] | None = None,
    ledger: Callable[[], Ledger | None] = lambda: None,
) -> Api:
    """The app in front of a service.

    service: gives the service when a request comes. A call, because Ray Serve pickles the app before the replica
        that owns the service exists; for the same reason nothing in here may hold a lock or a socket.
    body_timeout_s: a request whose body takes longer to arrive is given up. keep_alive_s: longest silence in a stream.
    stamp_request_id: False behind Ray Serve, whose proxy stamps every response itself.
    gate: who may come in; None: anyone. ledger: where tenants' use is read, if it is kept.
    """
    guard = [Middleware(Guard, gate=gate)] if gate is not None else []
    api = Api(
        title="GlimpRouter",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(RequestId, stamp=stamp_request_id),
            Middleware(Observer),
            Middleware(errors.Unexpected),
            Middleware(HeaderLimits),
            *guard,
        ],
        exception_handlers={
            Refusal: errors.on_refusal,
            HTTPException: errors.on_http_exception,
            ClientDisconnect: errors.on_client_gone,
        },
    )
    built_at = int(time.time())

    def card(id: str) -> reply.ModelCard:
        mode, threshold = schema.model_named(id)
        pair = service().pair
        if mode == "routed":
            return reply.model_card(id, MODELS, pair.threshold if threshold is None else threshold, built_at, pair)
        return reply.model_card(id, (mode,), None, built_at, pair)

    async def read(request: Request, kind: type[B]) -> B:
        text = await body.read(request, max_body_bytes, body_timeout_s)
        body.measure(text, MAX_DEPTH, max_messages)
        fields = body.parse(text)
        messages = fields.get("messages")
        if isinstance(messages, list) and len(messages) > max_messages:
            raise Refusal(
                f"messages: there are {len(messages):,}; up to {max_messages:,} are accepted here.",
                status=413,
                param="messages",
                code="request_too_large",
            )
        try:
            return kind.model_validate(fields)
        except ValidationError as invalid:
            raise errors.invalid(invalid) from invalid

    @api.get("/v1/models", responses=answers(reply.ModelList))
    async def list_models() -> Response:
        return _json({"object": "list", "data": [card(id) for id in ("glimpse", *MODELS)]})

    @api.get("/v1/models/{id:path}", responses=answers(reply.ModelCard))
    async def model(id: str) -> Response:
        return _json(card(id))

    async def respond(request: Request, kind: type[B], prefix: str, chunks: type[Chunks], whole: Whole) -> Response:
        asked = await read(request, kind)
        if getattr(asked, "max_completion_tokens", None) is not None:
            request.scope["state"][errors.RENAMED] = {"max_tokens": "max_completion_tokens"}
        router = service()
        head = reply.Head(f"{prefix}-{uuid4().hex}", int(time.time()), asked.model, router.pair)
        caller: Caller = request.scope["state"].get("caller", ANYONE)
        asks = replace(asked.request(head.id, head.pair), tenant=caller.tenant, caller=caller)
        events = router.write(asks)
        if asked.stream:
            encoder = chunks(head, include_usage=asked.includes_usage, include_steps=asked.includes_steps)
            return EventStream(events, encoder, keep_alive_s)
        written = await until_gone(reply.collect(events), request.receive)
        return _json(whole(head, written, asked.includes_steps))

    @api.post(
        "/v1/chat/completions",
        responses=answers(reply.ChatReply, streams=True),
        openapi_extra=takes(schema.ChatCompletion),
    )
    async def chat_completions(request: Request) -> Response:
        return await respond(request, schema.ChatCompletion, "chatcmpl", Chunks, reply.chat)

    @api.post(
        "/v1/completions",
        responses=answers(reply.TextReply, streams=True),
        openapi_extra=takes(schema.Completion),
    )
    async def completions(request: Request) -> Response:
        return await respond(request, schema.Completion, "cmpl", TextChunks, reply.text)

    @api.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    @api.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "What is missing."}})
    async def readyz() -> Response:
        missing = await service().ready()
        return PlainTextResponse("ready\n") if missing is None else PlainTextResponse(f"{missing}\n", 503)

    accounts.mount(api, ledger)
    page.mount(api)
    return api


def _json(content: Mapping[str, object]) -> Response:
    return Response(json.dumps(content), media_type="application/json")
