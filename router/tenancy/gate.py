"""A key on every request, and the caller's standing on every response."""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.api import errors
from router.observation import OPERATIONS, known, refused
from router.request import Refusal
from router.tenancy import keys
from router.tenancy.database import DatabaseError, answered
from router.tenancy.directory import Directory, Key
from router.tenancy.fairness import busy
from router.tenancy.settings import loopback
from router.tenancy.tenant import ANYONE, Caller, Policy

log = logging.getLogger(__name__)

OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
OPEN_BELOW = "/page/"
ADMIN = "/admin"
REMEMBERED = 10_000
STALE_S = 3600.0
"""While the database is away, a key that worked goes on working for that long."""

NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Remembered:
    """tried: when it was last looked up, in vain perhaps."""

    found: tuple[Key, Policy] | None
    at: float
    tried: float


class Gate:
    """Knows callers by their keys.

    directory: None lets everybody in as `ANYONE`. local: everybody is whoever uses this machine, and not the pages that
        they look at. admin_key: what `/admin` wants. cache_s: seconds for which a key is remembered. count: called for
        each request that asks a model for something; raises a `Refusal` if the caller has no more requests left.
        crowded: whether a caller's request would find no place.
    """

    def __init__(
        self,
        directory: Directory | None,
        *,
        local: bool = False,
        admin_key: str | None = None,
        cache_s: float = 5.0,
        count: Callable[[Caller, bool], Awaitable[None]] | None = None,
        crowded: Callable[[Caller], bool] = lambda _caller: False,
    ) -> None:
        self._directory, self._local = directory, local
        self._cache_s, self._count, self._crowded = cache_s, count, crowded
        self._admin_digest = keys.digest(admin_key) if admin_key else None
        self._remembered: OrderedDict[str, Remembered] = OrderedDict()

    @property
    def open(self) -> bool:
        return self._directory is None

    async def admit(self, scope: Scope) -> Caller:
        """The caller of a request. Raises a `Refusal`."""
        path = get_route_path(scope)
        if path == ADMIN or path.startswith(f"{ADMIN}/"):
            self._admit_admin(_bearer(scope))
            return ANYONE
        if path in OPEN or path.startswith(OPEN_BELOW):
            return ANYONE
        if self._directory is None:
            if self._local:
                _check_local(Headers(scope=scope))
            return ANYONE
        return await self.identify(_bearer(scope))

    async def count(self, caller: Caller, scope: Scope) -> None:
        """Count a caller's request. Raises a `Refusal` if it has no more left, or the request would find no place."""
        crowded = get_route_path(scope) in OPERATIONS and self._crowded(caller)
        if self._count is not None and caller is not ANYONE:
            await self._count(caller, scope["method"] == "POST" and not crowded)
        if crowded:
            raise busy()

    async def identify(self, text: str | None) -> Caller:
        """The caller with that key. Raises a `Refusal`."""
        if not text:
            raise _unauthorized("No API key was given: send it as `Authorization: Bearer <key>`.", "missing_api_key")
        id = keys.id_of(text)
        found = await self._find(id) if id is not None else None
        # A key that there is none of takes as long as one that differs in its last character.
        right = keys.same(found[0].digest if found else NO_DIGEST, text[: keys.LONGEST])
        if found is None or not right or not found[0].works(datetime.now(UTC)):
            raise _unauthorized("The API key is not valid: it is unknown, expired or revoked.", "invalid_api_key")
        key, policy = found
        return Caller(key.tenant, key.id, policy)

    async def _find(self, id: str) -> tuple[Key, Policy] | None:
        assert self._directory is not None
        now = time.monotonic()
        known = self._remembered.get(id)
        if known is not None and now - known.tried < self._cache_s:
            return known.found
        try:
            found = await answered(self._directory.find, id)
        except DatabaseError as error:
            if known is not None and known.found is not None and now - known.at < STALE_S:
                self._remembered[id] = replace(known, tried=time.monotonic())
                return known.found
            log.warning("a key could not be looked up: %s", error)
            message = "API keys can't be checked at present; try again."
            raise Refusal(message, status=503, code="keys_unavailable", retry_after_s=2.0) from error
        self._remembered[id] = Remembered(found, now, now)
        self._remembered.move_to_end(id)
        if len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _admit_admin(self, text: str | None) -> None:
        if self._admin_digest is None:
            raise Refusal("This server has no admin key, so nobody may do that.", status=403, code="no_admin_key")
        if not hmac.compare_digest(self._admin_digest, keys.digest(text or "")):
            raise _unauthorized("This needs the admin key.", "invalid_admin_key")


class Guard:
    """The gate as middleware. The caller is found in the scope's state as `caller`."""

    def __init__(self, app: ASGIApp, gate: Callable[[], Gate]) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        gate, caller = self._gate(), ANYONE

        async def standing(message: Message) -> None:
            if message["type"] == "http.response.start" and caller.standing.headers:
                MutableHeaders(scope=message).update(caller.standing.headers)
            await send(message)

        try:
            caller = await gate.admit(scope)
            known(caller.tenant)
            await gate.count(caller, scope)
        except Refusal as refusal:
            refused(refusal)
            told = errors.response(refusal)
            if refusal.status == 401:
                told.headers["www-authenticate"] = "Bearer"
            await told(scope, receive, standing)
            return
        scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, standing)


def _check_local(headers: Headers) -> None:
    """Refuses what a browser sends for a page from elsewhere, also one whose name was made to lead to this machine."""
    try:
        host = urlsplit(f"//{headers.get('host', 'localhost')}").hostname or ""
    except ValueError:
        host = ""
    if not (loopback(host) or host.endswith(".localhost")) or headers.get("sec-fetch-site") == "cross-site":
        message = "Without keys this server answers this machine only: ask it as 127.0.0.1 or localhost."
        raise Refusal(message, status=403, code="not_local")


def _bearer(scope: Scope) -> str | None:
    scheme, _, text = Headers(scope=scope).get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def _unauthorized(message: str, code: str) -> Refusal:
    return Refusal(message, status=401, code=code)
