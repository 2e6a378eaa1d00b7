"""Server-sent events: each event of a generation becomes a chunk, written at once; `[DONE]` comes last.

All that is constant over a request is encoded once; per event only the new text is.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from time import monotonic

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.api import errors, reply
from router.api.disconnect import until_gone
from router.request import Event, Finished, Refusal, StepWritten, Text

log = logging.getLogger(__name__)

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": keep-alive\n\n"


class Chunks:
    """Events as the chunks of a chat completion.

    include_usage: whether a last chunk tells the usage (and all others say null, as OpenAI's do).
    include_steps: whether steps are told as they end, and the account at the end.
    """

    kind = "chat.completion.chunk"

    def __init__(self, head: reply.Head, *, include_usage: bool, include_steps: bool) -> None:
        self._include_usage, self._include_steps = include_usage, include_steps
        constant = {
            "id": head.id,
            "object": self.kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.pair.fingerprint,
        }
        self._start = f"data: {json.dumps(constant)[:-1]}, "
        self._end = ', "usage": null}\n\n' if include_usage else "}\n\n"

    def opening(self) -> str:
        return self._chunk('{"role": "assistant", "content": ""}')

    def of(self, event: Event) -> str:
        match event:
            case Text():
                return self._chunk(self._delta(event))
            case StepWritten():
                if not self._include_steps:
                    return ""
                return self._chunk(self._nothing(), glimpse={"step": reply.step(event)})
            case Finished():
                glimpse = reply.account(event) if self._include_steps else None
                last = self._chunk(self._nothing(), json.dumps(event.finish_reason), glimpse)
                return last + self._usage(event) + DONE

    def _delta(self, text: Text) -> str:
        name = "reasoning_content" if text.voice == "reasoning" else "content"
        return f'{{"{name}": {json.dumps(text.text)}}}'

    def _nothing(self) -> str:
        return "{}"

    def _choice(self, delta: str, finish_reason: str) -> str:
        return f'{{"index": 0, "delta": {delta}, "logprobs": null, "finish_reason": {finish_reason}}}'

    def _chunk(self, delta: str, finish_reason: str = "null", glimpse: Mapping[str, object] | None = None) -> str:
        extension = "" if glimpse is None else f', "glimpse": {json.dumps(glimpse)}'
        return f'{self._start}"choices": [{self._choice(delta, finish_reason)}]{extension}{self._end}'

    def _usage(self, finished: Finished) -> str:
        if not self._include_usage:
            return ""
        return f'{self._start}"choices": [], "usage": {json.dumps(reply.usage(finished))}}}\n\n'


class TextChunks(Chunks):
    """Events as the chunks of a completion: one voice, no role."""

    kind = "text_completion"

    def opening(self) -> str:
        return ""

    def _delta(self, text: Text) -> str:
        return json.dumps(text.text)

    def _nothing(self) -> str:
        return '""'

    def _choice(self, delta: str, finish_reason: str) -> str:
        return f'{{"index": 0, "text": {delta}, "logprobs": null, "finish_reason": {finish_reason}}}'


class EventStream(Response):
    """A response that starts with the first event, so that a refusal before it still has a status of its own. A
    later one is an `error` event, after which the stream ends without [DONE].

    keep_alive_s: a comment is written whenever nothing else was for so long, for the proxies in between.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Event], chunks: Chunks, keep_alive_s: float = 15.0) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        # nginx would hold small chunks back.
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._chunks, self._keep_alive_s = events, chunks, keep_alive_s
        self._started = False
        self._written_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(self._respond(scope, send), receive)
        except (ClientDisconnect, OSError):
            # Some servers tell of a client that is gone by failing to send.
            if not self._started:
                raise

    async def _respond(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            self._started = True
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._written_at = monotonic()
            keeping_alive = asyncio.create_task(self._keep_alive(send))
            try:
                async with aclosing(self._encoded(first, events, errors.request_id(scope))) as chunks:
                    async for chunk in chunks:
                        await self._write(chunk, send)
            finally:
                keeping_alive.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _encoded(self, first: Event, events: AsyncGenerator[Event], request_id: str) -> AsyncGenerator[str]:
        yield self._chunks.opening() + self._chunks.of(first)
        last = first
        try:
            async for last in events:
                yield self._chunks.of(last)
            if not isinstance(last, Finished):
                raise RuntimeError("the events ended without Finished")
        except Refusal as refusal:
            yield _error(refusal)
        except Exception:
            log.exception("stream failed half-way, request %s", request_id)
            yield _error(errors.unexpected())

    async def _write(self, chunk: str, send: Send) -> None:
        if chunk:
            self._written_at = monotonic()
            await send({"type": "http.response.body", "body": chunk.encode(), "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        with suppress(OSError):
            while True:
                await asyncio.sleep(self._written_at + self._keep_alive_s - monotonic())
                if monotonic() - self._written_at >= self._keep_alive_s:
                    await self._write(KEEP_ALIVE, send)


def _error(refusal: Refusal) -> str:
    return f"data: {json.dumps(errors.body(refusal))}\n\n"
