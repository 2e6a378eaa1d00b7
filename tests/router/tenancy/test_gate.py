from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from entries import entry
from sqlalchemy import Engine

from router.api.routes import build
from router.tenancy import keys
from router.tenancy.database import connect
from router.tenancy.directory import Directory
from router.tenancy.gate import Gate
from router.tenancy.ledger import Ledger
from router.tenancy.limits import Limits
from router.tenancy.tenant import Policy

CHAT = {"model": "glimpse", "messages": [{"role": "user", "content": "2 + 2?"}]}
ADMIN = "an-admin-key-of-some-length"


@pytest.fixture
def directory(database: Engine) -> Directory:
    return Directory(database)


@pytest.fixture
def gate(directory: Directory) -> Gate:
    """It forgets at once, so that changes show."""
    return Gate(directory, admin_key=ADMIN, cache_s=0)


@pytest.fixture
async def client(service: Any, gate: Gate, database: Engine) -> AsyncIterator[httpx.AsyncClient]:
    ledger = Ledger(database)
    app = build(lambda: service, gate=lambda: gate, ledger=lambda: ledger)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        yield client


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def test_nobody_gets_in_without_a_key(client: httpx.AsyncClient, service: Any) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        reply = await client.post(path, json=CHAT)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "missing_api_key"
    for path in ("/v1/models", "/v1/models/small", "/v1/usage", "/v1", "/v1/", "//v1/models", "/other", "/metrics"):
        assert (await client.get(path)).status_code == 401, path
    assert service.asked == []


async def test_a_key_lets_its_tenant_in(client: httpx.AsyncClient, service: Any, directory: Directory) -> None:
    key = directory.create_key("acme")
    reply = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key.text))
    assert reply.status_code == 200, reply.text
    (asked,) = service.asked
    assert (asked.tenant, asked.caller.key, asked.caller.policy) == ("acme", key.id, Policy())


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/openapi.json", "/page/app.js"])
async def test_what_everybody_may_see(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 200


async def test_keys_that_do_not_work_are_all_told_the_same(client: httpx.AsyncClient, directory: Directory) -> None:
    key = directory.create_key("acme")
    expired = directory.create_key("acme", lifetime=timedelta(seconds=-1))
    revoked = directory.create_key("acme")
    directory.revoke_key(revoked.id)
    wrong = (
        key.text[:-1] + ("x" if key.text[-1] != "x" else "y"),
        keys.mint().text,
        expired.text,
        revoked.text,
        key.text + "x",
        key.text.lower(),
        f"glr_{key.id}_",
        "sk-other",
        "x" * 10_000,
    )
    told = set()
    for text in wrong:
        reply = await client.get("/v1/models", headers=bearer(text))
        assert reply.status_code == 401
        told.add(reply.text)
    assert len(told) == 1


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic abc", "Bearer\t", "bearer  x y z"])
async def test_other_authorizations_are_none(client: httpx.AsyncClient, value: str) -> None:
    assert (await client.get("/v1/models", headers={"authorization": value})).status_code == 401


async def test_the_scheme_is_case_insensitive(client: httpx.AsyncClient, directory: Directory) -> None:
    key = directory.create_key("acme")
    reply = await client.get("/v1/models", headers={"authorization": f"bearer {key.text}"})
    assert reply.status_code == 200


async def test_a_revoked_key_stops_working_and_a_known_one_needs_no_database(directory: Directory) -> None:
    key = directory.create_key("acme")
    quick, slow = Gate(directory, cache_s=0), Gate(directory, cache_s=3600)
    for gate in (quick, slow):
        assert (await gate.identify(key.text)).tenant == "acme"
    directory.revoke_key(key.id)
    assert (await slow.identify(key.text)).tenant == "acme"
    with pytest.raises(Exception, match="not valid"):
        await quick.identify(key.text)


async def test_while_the_database_is_away_known_keys_work_and_others_are_told_to_wait(
    directory: Directory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = directory.create_key("acme"), directory.create_key("acme")
    await gate.identify(key.text)
    away = Directory(connect("postgresql://me@127.0.0.1:1/none"))
    monkeypatch.setattr(gate, "_directory", away)
    assert (await gate.identify(key.text)).tenant == "acme"
    with pytest.raises(Exception, match="can't be checked") as refused:
        await gate.identify(other.text)
    assert refused.value.status == 503  # type: ignore[attr-defined]


async def test_a_database_that_hangs_is_not_waited_for(
    directory: Directory, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = directory.create_key("acme"), directory.create_key("acme")
    await gate.identify(key.text)
    over = threading.Event()
    monkeypatch.setattr("router.tenancy.database.ANSWER_S", 0.1)
    monkeypatch.setattr(directory, "find", lambda id: over.wait(60))
    monkeypatch.setattr(gate, "_directory", directory)
    try:
        callers = await asyncio.gather(*(gate.identify(key.text) for _ in range(20)))
        assert {caller.tenant for caller in callers} == {"acme"}
        with pytest.raises(Exception, match="can't be checked"):
            await gate.identify(other.text)
        assert await asyncio.to_thread(lambda: "free") == "free", "for whatever else needs one"
    finally:
        over.set()


async def test_a_callers_standing_is_on_every_response_of_its(service: Any, directory: Directory) -> None:
    key = directory.create_key("acme")
    directory.put_tenant("acme", {"requests_per_minute": 3, "tokens_per_minute": 1000})
    gate = Gate(directory, count=Limits().request)
    app = build(lambda: service, gate=lambda: gate)
    told = []
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://router", headers=bearer(key.text)
    ) as client:
        for reply in (
            await client.post("/v1/chat/completions", json=CHAT),
            await client.post("/v1/chat/completions", json=CHAT | {"stream": True}),
            await client.post("/v1/chat/completions", content="{"),
            await client.post("/v1/chat/completions", json=CHAT),
            await client.get("/v1/models"),
            await client.get("/nowhere"),
        ):
            assert reply.headers["x-ratelimit-limit-requests"] == "3"
            assert reply.headers["x-ratelimit-remaining-tokens"] == "1000"
            told.append((reply.status_code, reply.headers["x-ratelimit-remaining-requests"]))
            assert ("retry-after" in reply.headers) == (reply.status_code == 429)
    assert told == [(200, "2"), (200, "1"), (400, "0"), (429, "0"), (200, "0"), (404, "0")]


async def test_whoever_finds_no_place_is_told_before_its_body_is_read(
    service: Any, directory: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    key = directory.create_key("acme")
    directory.put_tenant("acme", {"requests_per_minute": 3})
    gate = Gate(directory, count=Limits().request, crowded=lambda caller: caller.tenant == "acme")
    app = build(lambda: service, gate=lambda: gate)
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield json.dumps(CHAT).encode()

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://router", headers=bearer(key.text)
    ) as client:
        with caplog.at_level(logging.INFO, "glimprouter.requests"):
            reply = await client.post("/v1/chat/completions", content=body())
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "overloaded")
        line = next(json.loads(record.message) for record in caplog.records if record.name == "glimprouter.requests")
        assert (line["tenant"], line["code"], line["error"]) == ("acme", 429, "overloaded")
        assert reply.headers["retry-after"] == "1"
        assert read == 0
        # It had nothing, so it costs none of the tenant's requests a minute.
        assert reply.headers["x-ratelimit-remaining-requests"] == "3"
        assert (await client.get("/v1/models")).status_code == 200


async def test_admin_paths_want_the_admin_key(client: httpx.AsyncClient, directory: Directory) -> None:
    key = directory.create_key("acme")
    for headers in ({}, bearer(key.text), bearer(ADMIN[:-1]), bearer(ADMIN + "x")):
        assert (await client.get("/admin/tenants", headers=headers)).status_code == 401
    assert (await client.get("/v1/models", headers=bearer(ADMIN))).status_code == 401
    assert (await client.get("/admin/nothing", headers=bearer(ADMIN))).status_code == 404


async def test_without_an_admin_key_nobody_is_admin() -> None:
    app = build(lambda: None, gate=lambda: Gate(None))  # type: ignore[arg-type,return-value]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        for headers in ({}, bearer(""), bearer("x")):
            assert (await client.get("/admin/tenants", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, 200),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, 403),
        ({"host": "a-page.example:8000", "sec-fetch-site": "same-origin"}, 403),
        ({"host": "[x"}, 403),
    ],
)
async def test_without_keys_pages_from_elsewhere_are_not_served(
    service: Any, headers: dict[str, str], status: int
) -> None:
    app = build(lambda: service, gate=lambda: Gate(None, local=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://router") as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == status
        assert (await client.get("/healthz", headers=headers)).status_code == 200


async def test_no_key_shows_in_logs_errors_or_reprs(
    client: httpx.AsyncClient, directory: Directory, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, unknown = directory.create_key("acme"), keys.mint()
    secrets = [text.split("_", 2)[2] for text in (key.text, unknown.text)] + [ADMIN]
    told = caplog.text
    for text in (key.text, unknown.text, ADMIN):
        told += (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(text))).text
        told += (await client.post("/v1/chat/completions", content="{", headers=bearer(text))).text
        told += (await client.get("/admin/x", headers=bearer(text))).text
    told += caplog.text + repr(service.asked) + repr(directory.find(key.id)) + repr(key)
    assert "acme" in told
    assert not [secret for secret in secrets if secret in told]


async def test_usage_is_the_callers_own(client: httpx.AsyncClient, directory: Directory, database: Engine) -> None:
    Ledger(database).add([entry("a", tenant="acme"), entry("b", tenant="acme"), entry("c", tenant="other")])
    key = directory.create_key("acme")
    reply = await client.get("/v1/usage", headers=bearer(key.text))
    assert reply.status_code == 200, reply.text
    told = reply.json()
    assert told["tenant"] == "acme"
    (day,) = told["data"]
    assert (day["model"], day["requests"], day["cost"]) == ("glimpse", 2, 2e-6)
    assert day["by_model"]["small"] == {"prompt_tokens": 20, "cached_tokens": 10, "completion_tokens": 40}
    nobody = await client.get("/v1/usage", headers=bearer(directory.create_key("third").text))
    assert nobody.json()["data"] == []


@pytest.mark.parametrize(
    "query", ["since=yesterday", "since=2026-02-30", "since=2026-02-02&until=2026-02-01", "until="]
)
async def test_usage_of_no_period_is_refused(client: httpx.AsyncClient, directory: Directory, query: str) -> None:
    key = directory.create_key("acme")
    reply = await client.get(f"/v1/usage?{query}", headers=bearer(key.text))
    assert reply.status_code == 400, reply.text
