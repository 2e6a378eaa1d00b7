"""A system with keys: two routers, PostgreSQL and Redis where they are installed, else a file and no Redis.

GLIMPROUTER_TEST_EMBEDDED=1 leaves the two out though they are there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from asking import STEPS, ask, ask_all, problems
from sqlalchemy import Engine, text
from system import System, start
from typer.testing import CliRunner

from deployments.cli import app
from loadtest.attacks import fuzz, secrets_told
from loadtest.servers import Postgres, Redis, postgres_programs, redis_program
from router.tenancy.comparisons import Comparisons
from router.tenancy.database import connect, upgrade
from router.tenancy.directory import Directory

# One system at a time, so this one comes after the other was ended.
pytestmark = [
    pytest.mark.last,
    pytest.mark.skipif("GLIMPROUTER_TEST_URL" in os.environ, reason="starts its own system"),
]

PROFILE = Path("deployments/profiles/pocket.yaml")
ADMIN = "the-admin-key-of-these-tests"
TENANTS: dict[str, dict[str, Any]] = {
    "acme": {},
    "other": {},
    "launcher": {},
    "limited": {"requests_per_minute": 20},
    "single": {"concurrent_requests": 1},
    "small-only": {"models": ["small"]},
    "frugal": {"max_large_share": 0.2, "threshold": 0.0},
    "poor": {"monthly_tokens": 1},
    "fuzzer": {"max_output": 4, "max_context": 1024},
}


# In a process of its own: Serve's handles in this one stay with the system before.
COUNTED = """
import json, sys
from ray import serve
from deployments.attaching import attach
attach()
ids = json.load(sys.stdin)
handles = [serve.get_deployment_handle(pool, "glimpse") for pool in ("small", "large")]
print(json.dumps([handle.generated.remote(ids).result() for handle in handles]))
"""


def engines_counted(system: System, ids: list[str]) -> list[dict[str, int]]:
    """Tokens that each pool's engine generated for these requests."""
    told = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env=os.environ | {"RAY_ADDRESS": str(system.cluster)},
        input=json.dumps(ids),
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    counts: list[dict[str, int]] = json.loads(told.stdout.splitlines()[-1])
    return counts


@dataclass
class Office:
    system: System
    engine: Engine
    directory: Directory
    keys: dict[str, str] = field(repr=False)
    postgres: Postgres | None

    def client(self, tenant: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.AsyncClient(base_url=self.system.url, timeout=120, headers=headers)

    def rows(self, tenant: str) -> dict[str, Any]:
        wanted = text("SELECT * FROM requests WHERE tenant = :tenant")
        with self.engine.connect() as connection:
            return {row.id: row for row in connection.execute(wanted, {"tenant": tenant})}

    async def delivered(self, tenant: str, ids: Iterable[str]) -> dict[str, Any]:
        """The tenant's rows once these are among them."""
        wanted = set(ids)
        for _ in range(300):
            if wanted <= (rows := self.rows(tenant)).keys():
                return rows
            await asyncio.sleep(0.1)
        pytest.fail(f"{len(wanted - self.rows(tenant).keys())} of {len(wanted)} accounts were not delivered")


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("office")
    embedded = "GLIMPROUTER_TEST_EMBEDDED" in os.environ
    with ExitStack() as stack:
        postgres = stack.enter_context(closing(Postgres())) if postgres_programs() and not embedded else None
        redis = stack.enter_context(closing(Redis())) if redis_program() and not embedded else None
        yield stack.enter_context(opened(folder, postgres, redis))


@contextmanager
def opened(folder: Path, postgres: Postgres | None, redis: Redis | None) -> Iterator[Office]:
    config = yaml.safe_load(PROFILE.read_text())
    args = config["applications"][0]["args"]
    args["router"] = {"cpus": 0.2, "replicas": 2 if redis else 1}
    args["access"] = {"journal": str(folder / "journal"), "key_cache_s": 1, "prices": {"large": {"completion": 2}}}
    args["shadow"] = {"share": 1.0}
    profile = folder / "profile.yaml"
    profile.write_text(yaml.safe_dump(config))
    url = postgres.url if postgres else f"sqlite:///{folder}/accounts.db"
    engine = connect(url)
    upgrade(engine)
    directory = Directory(engine)
    keys = {tenant: directory.create_key(tenant).text for tenant in TENANTS}
    for tenant, policy in TENANTS.items():
        directory.put_tenant(tenant, policy)
    secrets = {
        "GLIMPROUTER_DATABASE_URL": url,
        "GLIMPROUTER_API_KEY": keys["launcher"],
        "GLIMPROUTER_ADMIN_KEY": ADMIN,
    } | ({"GLIMPROUTER_REDIS_URL": redis.url} if redis else {})
    running = start(str(profile), **secrets)
    try:
        yield Office(running, engine, directory, keys, postgres)
    finally:
        running.stop()
        engine.dispose()


@pytest.fixture
async def acme(office: Office) -> AsyncIterator[httpx.AsyncClient]:
    async with office.client("acme") as client:
        yield client


async def test_nobody_gets_in_without_a_key(office: Office) -> None:
    async with httpx.AsyncClient(base_url=office.system.url) as stranger:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/v1/usage")):
            reply = await stranger.request(method, path, json={})
            assert reply.status_code == 401, reply.text
            assert reply.headers["x-request-id"]
        assert (await stranger.get("/healthz")).status_code == 200
        assert (await stranger.get("/admin/tenants")).status_code == 401


async def test_serve_listens_on_this_machine_only(office: Office) -> None:
    """And what else listens speaks Ray's own protocols, not ours."""
    assert office.system.starter is not None
    proxies = [
        process
        for process in psutil.Process(office.system.starter.pid).children(recursive=True)
        if any(name in " ".join(process.cmdline()) for name in ("ProxyActor", "ServeReplica"))
    ]
    assert proxies
    for process in proxies:
        for at in process.net_connections("tcp"):
            if at.status == psutil.CONN_LISTEN and at.laddr.ip not in ("127.0.0.1", "::1"):
                async with httpx.AsyncClient(timeout=2) as client:
                    with pytest.raises(httpx.HTTPError):
                        (await client.get(f"http://127.0.0.1:{at.laddr.port}/v1/models")).raise_for_status()


async def test_a_revoked_key_stops_working(office: Office) -> None:
    key = office.directory.create_key("acme")
    async with httpx.AsyncClient(base_url=office.system.url, headers={"authorization": f"Bearer {key.text}"}) as client:
        assert (await client.get("/v1/models")).status_code == 200
        office.directory.revoke_key(key.id)
        await asyncio.sleep(1.2)
        for _ in range(6):
            assert (await client.get("/v1/models")).status_code == 401


async def test_two_routers_count_one_limit(office: Office) -> None:
    async with office.client("limited") as client:
        body = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        replies = [await client.post("/v1/chat/completions", json=body) for _ in range(50)]
        assert [reply.status_code for reply in replies].count(200) == 20
        refused = replies[-1]
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert refused.headers["x-ratelimit-limit-requests"] == "20"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await client.get("/v1/models")).headers["x-ratelimit-remaining-requests"] == "0"


async def test_policies_hold(office: Office) -> None:
    question = problems(1, seed=41)[0].question
    asked = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    async with office.client("small-only") as client:
        assert (await client.post("/v1/chat/completions", json=asked | {"model": "glimpse"})).status_code == 403
        assert (await client.post("/v1/chat/completions", json=asked | {"model": "small"})).status_code == 200
    async with office.client("poor") as client:
        reply = await client.post("/v1/chat/completions", json=asked | {"model": "glimpse"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "insufficient_quota")
    async with office.client("single") as client:
        replies = await asyncio.gather(
            *(client.post("/v1/chat/completions", json=asked | {"model": "glimpse"}) for _ in range(6))
        )
        assert {reply.status_code for reply in replies} == {200, 429}


async def test_a_tenants_share_of_the_large_model_is_bounded(office: Office) -> None:
    async with office.client("frugal") as client:
        replies = await ask_all(
            client, [problem.question for problem in problems(100, seed=42)], at_a_time=8, glimpse=STEPS
        )
    spent = 0
    for reply in replies:
        tokens = reply["usage"]["completion_tokens"]
        longest = max(step["tokens"] for step in reply["glimpse"]["steps"] if step["model"] == "large")
        assert reply["glimpse"]["large_token_share"] * tokens <= 0.2 * tokens + max(longest, 16)
        spent += reply["glimpse"].get("large_share_spent", False)
    assert spent > 0


async def test_another_tenants_prompt_is_not_in_the_cache(office: Office, acme: httpx.AsyncClient) -> None:
    prompt = " ".join(problem.question for problem in problems(80, seed=43))[:6500]
    asked = {"model": "small", "prompt": prompt, "max_tokens": 1, "temperature": 0}

    async def cached(client: httpx.AsyncClient) -> tuple[int, int]:
        usage = (await client.post("/v1/completions", json=asked)).json()["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    prompt_tokens, _ = await cached(acme)
    assert prompt_tokens >= 1500
    assert (await cached(acme))[1] > 0.9 * prompt_tokens
    async with office.client("other") as other:
        assert (await cached(other))[1] == 0
        assert (await cached(other))[1] > 0.9 * prompt_tokens


async def test_the_ledger_says_what_the_client_and_the_engines_say(office: Office, acme: httpx.AsyncClient) -> None:
    questions = [problem.question for problem in problems(24, seed=44)]
    replies = await ask_all(acme, questions, at_a_time=8, glimpse=STEPS)
    rows = await office.delivered("acme", [reply["id"] for reply in replies])
    counted = await asyncio.to_thread(engines_counted, office.system, [reply["id"] for reply in replies])
    for reply in replies:
        row = rows[reply["id"]]
        for model, used in reply["usage"]["by_model"].items():
            for kind in ("prompt", "cached", "completion"):
                assert getattr(row, f"{model}_{kind}_tokens") == used[f"{kind}_tokens"]
        assert row.discarded_tokens == reply["glimpse"]["discarded_tokens"]
        generated = sum(counts.get(reply["id"], 0) for counts in counted)
        assert row.small_completion_tokens + row.large_completion_tokens + row.discarded_tokens == generated
        assert row.cost_nano == 2000 * row.large_completion_tokens
        assert row.status == "stop"
    told = (await acme.get("/v1/usage")).json()
    today = [day for day in told["data"] if day["model"] == "glimpse"]
    assert sum(day["requests"] for day in today) == sum(row.model == "glimpse" for row in rows.values())
    assert told["tenant"] == "acme"
    assert all(day["date"] <= datetime.now(UTC).date().isoformat() for day in today)


async def test_shadow_runs_tell_what_routing_changes(office: Office, acme: httpx.AsyncClient) -> None:
    replies = []
    for problem in problems(6, seed=46):
        replies.append(await ask(acme, problem.question, glimpse=STEPS))
        await asyncio.sleep(2)  # time for the large model to write it alone
    found = Comparisons(office.engine, {}).report("acme")
    assert sum(one.compared for one in found) >= 3
    assert sum(one.agreed for one in found) >= 2
    assert {one.threshold for one in found} == {replies[0]["glimpse"]["threshold"]}
    # On nobody's bill.
    assert not any(id.startswith("shadow") for id in office.rows("acme"))
    report = CliRunner().invoke(
        app, ["shadow", "report", "--tenant", "acme", "--database", office.engine.url.render_as_string(False)]
    )
    assert report.exit_code == 0, report.output
    assert "acme" in report.output


async def test_a_client_that_hangs_up_is_accounted_for(office: Office, acme: httpx.AsyncClient) -> None:
    body = {"model": "small", "prompt": "1 2 3 4 5 6 7 8 9", "max_tokens": 3500, "temperature": 1.5, "top_k": 40}
    async with acme.stream("POST", "/v1/completions", json=body | {"stream": True, "seed": 1}) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                id = json.loads(line[6:])["id"]
                break
    rows = await office.delivered("acme", [id])
    assert rows[id].status in ("client_gone", "stop", "length")
    assert rows[id].small_completion_tokens > 0


async def test_a_killed_router_and_a_restarted_database_lose_nothing(office: Office) -> None:
    assert office.system.starter is not None
    router = next(
        process.pid
        for process in psutil.Process(office.system.starter.pid).children(recursive=True)
        if "ServeReplica:glimpse:router" in " ".join(process.cmdline())
    )
    finished: list[str] = []
    async with office.client("other") as client:

        async def one(question: str) -> None:
            with suppress(AssertionError, httpx.HTTPError):  # those whose router was killed
                finished.append((await ask(client, question))["id"])

        asking = [asyncio.create_task(one(problem.question)) for problem in problems(40, seed=45)]
        await asyncio.wait(asking[:8])
        os.kill(router, signal.SIGKILL)
        if office.postgres is not None:
            await asyncio.to_thread(office.postgres.stop)
            await asyncio.sleep(1)
            await asyncio.to_thread(office.postgres.start)
        await asyncio.gather(*asking)
    assert len(finished) >= 8
    await office.delivered("other", finished)


async def test_hostile_requests_are_refused_and_the_server_stays_well(office: Office, acme: httpx.AsyncClient) -> None:
    url = "/v1/chat/completions"
    message = {"role": "user", "content": "Hi"}
    attacks = [
        (b"x" * 50_000_000, 413),
        (json.dumps({"model": "glimpse", "messages": [message] * 100_000}).encode(), 413),
        (b'{"model": "glimpse", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (json.dumps({"model": "glimpse", "messages": [message], "stop": ["x"] * 100_000}).encode(), 400),
    ]
    for body, status in attacks:
        reply = await acme.post(url, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == status, (body[:60], reply.status_code, reply.text[:200])
    reply = await acme.get("/v1/models", headers={f"x-{n}": "a" for n in range(150)})
    assert reply.status_code == 431
    assert (await ask(acme, "What is 2 + 2?", max_tokens=8))["usage"]["completion_tokens"] <= 8
    assert (await acme.get("/readyz")).status_code == 200


def test_no_key_is_in_any_log(office: Office) -> None:
    outcome = secrets_told([*office.keys.values(), ADMIN])
    assert outcome.right, outcome.outcome


async def test_schemathesis_finds_nothing_that_breaks(office: Office) -> None:
    """A few cases of each operation; loadtest.attacks tries thousands."""
    headers = {"authorization": f"Bearer {office.keys['fuzzer']}"}
    outcome = await asyncio.to_thread(fuzz, office.system.url, headers, 30, 1)
    assert outcome.right, outcome.outcome
    async with office.client("acme") as client:
        assert (await client.get("/readyz")).status_code == 200
