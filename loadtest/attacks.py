"""Attacks a server of its own that has keys, and says what came of each.

    python -m loadtest.attacks --cases 2000

Bodies that are too large, too many or too deep, and what they do to the memory of the proxy and the router; clients
that send their headers or their body a byte a second, and what they do to others; keys that are wrong; another
tenant's prompt; `schemathesis` against the server's own OpenAPI; and at last whether a key or an admin key is in any
log. Fails if anything got through, a 5xx was answered, or the server is not well in the end.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from loadtest.command import MeasuringError, at_least_one, parser, run
from loadtest.processes import held_mib
from loadtest.questions import Question, generated
from loadtest.table import table
from loadtest.tenants import Office, tenanted

ADMIN = "admin-key-of-an-attacked-server"
TENANTS: Mapping[str, Mapping[str, Any]] = {
    "healthy": {},
    "attacker": {},
    # What is tried 2,000 times should be short.
    "fuzzer": {"max_output": 4, "max_context": 1024},
}
MESSAGE = {"role": "user", "content": "Hi"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was tried, what the server did, and whether that is right."""

    attack: str
    outcome: str
    right: bool


def memory() -> dict[str, float]:
    """MiB that the proxy and the router hold by themselves."""
    return {name: mib for name, mib in held_mib().items() if name.startswith(("proxy", "replica router"))}


async def oversized(office: Office) -> Iterable[Outcome]:
    """Each of them 20 times; the first time may make pools grow that are then kept."""
    attacks = {
        "a body of 50 MB": (b"x" * 50_000_000, 413),
        "100,000 messages": (json.dumps({"model": "glimpse", "messages": [MESSAGE] * 100_000}).encode(), 413),
        "lists nested 200,000 deep": (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", 400),
        "objects nested 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        "100,000 stop strings": (json.dumps({"messages": [MESSAGE], "stop": ["x"] * 100_000}).encode(), 400),
    }
    found = []
    async with httpx.AsyncClient(base_url=office.url, timeout=60, headers=office.headers("attacker")) as http:
        for name, (body, right) in attacks.items():
            codes, before = set(), memory()
            for n in range(20):
                codes.add((await http.post("/v1/chat/completions", content=body)).status_code)
                if n == 4:
                    before = memory()
            grown = {process: held - before[process] for process, held in memory().items()}
            told = ", ".join(f"{process} {mib:+.1f} MiB" for process, mib in sorted(grown.items()))
            flat = all(mib < 20 for mib in grown.values())
            found.append(Outcome(f"{name}, 20 times", f"{_codes(codes)}; {told}", codes == {right} and flat))
        reply = await http.get("/v1/models", headers={f"x-{n}": "a" for n in range(150)})
        found.append(Outcome("150 headers", str(reply.status_code), reply.status_code == 431))
        reply = await http.get("/v1/models", headers={"x-long": "a" * 60_000})
        found.append(Outcome("a header of 60 kB", str(reply.status_code), 400 <= reply.status_code < 500))
    return found


async def healthy(office: Office, questions: list[Question], seconds: float) -> list[float]:
    """Latencies of four clients who ask one question after another."""
    took: list[float] = []
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=office.url, timeout=60, headers=office.headers("healthy")) as http:

        async def client(mine: list[Question]) -> None:
            for question in mine:
                if time.monotonic() > until:
                    return
                body = {"model": "small", "messages": list(question.messages), "temperature": 0}
                began = time.monotonic()
                (await http.post("/v1/chat/completions", json=body)).raise_for_status()
                took.append(time.monotonic() - began)

        await asyncio.gather(*(client(questions[n::4]) for n in range(4)))
    return took


async def dribble(office: Office, head: bytes, text: bytes) -> None:
    """A client that sends `head` at once and `text` a byte a second, until it is cut off."""
    at = urlsplit(office.url)
    while True:
        try:
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            writer.write(head)
            for byte in text:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
            await reader.read(1)
        except OSError:
            await asyncio.sleep(0.1)


async def slow(office: Office, questions: list[Question], clients: int, seconds: float) -> Iterable[Outcome]:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    key = f"authorization: {office.headers('attacker')['authorization']}\r\n".encode()
    length = b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    alone = float(np.percentile(await healthy(office, questions, seconds), 95))
    found = []
    for name, sent, text in (
        ("headers", head, b"x-slow: " + b"a" * 1000),
        ("bodies without a key", head + length, b" " * 1000),
        ("bodies with a key", head + key + length, b" " * 1000),
    ):
        slow_ones = [asyncio.create_task(dribble(office, sent, text)) for _ in range(clients)]
        await asyncio.sleep(2)
        beside = float(np.percentile(await healthy(office, questions, seconds), 95))
        for task in slow_ones:
            task.cancel()
        await asyncio.gather(*slow_ones, return_exceptions=True)
        told = f"p95 of healthy clients {beside:.2f} s beside it, {alone:.2f} s without"
        found.append(Outcome(f"{clients} clients that send {name} a byte a second", told, beside < 2 * alone))
    return found


async def keyless(office: Office) -> Iterable[Outcome]:
    key = office.headers("healthy")["authorization"]
    tried = {
        "no key": {},
        "a key with another last character": {"authorization": key[:-1] + ("a" if key[-1] != "a" else "b")},
        "a key that is only a known id": {"authorization": key[: len(key) // 2]},
        "a key of 8,000 characters": {"authorization": "Bearer " + "a" * 8000},
        "another scheme": {"authorization": key.replace("Bearer", "Basic")},
    }
    found = []
    async with httpx.AsyncClient(base_url=office.url, timeout=60) as http:
        for name, headers in tried.items():
            codes = {
                (await http.request(method, path, headers=headers)).status_code
                for method, path in (("GET", "/v1/models"), ("GET", "/v1/usage"), ("POST", "/v1/chat/completions"))
            }
            found.append(Outcome(name, _codes(codes), codes == {401}))
        reply = await http.get("/admin/tenants", headers={"authorization": key})
        found.append(Outcome("a tenant's key on an admin route", str(reply.status_code), reply.status_code == 401))
        reply = await http.get("/v1/usage?tenant=attacker", headers={"authorization": key})
        told = json.dumps(reply.json())
        mine = reply.json().get("tenant") == "healthy" and "attacker" not in told
        found.append(Outcome("asking for another tenant's usage", "its own" if mine else told[:80], mine))
    return found


async def neighbours(office: Office, questions: list[Question]) -> Iterable[Outcome]:
    """Whether the cache tells that another tenant asked the same."""
    prompt = " ".join(str(question.messages[-1]["content"]) for question in questions)[:6500]
    body = {"model": "small", "prompt": prompt, "max_tokens": 1, "temperature": 0}
    told = {}
    for tenant in ("healthy", "healthy", "attacker"):
        async with httpx.AsyncClient(base_url=office.url, timeout=60, headers=office.headers(tenant)) as http:
            usage = (await http.post("/v1/completions", json=body)).json()["usage"]
        told[tenant] = (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])
    (length, own), (_, others) = told["healthy"], told["attacker"]
    outcome = f"of {length} tokens {own} are found for the tenant itself, {others} for another"
    return [Outcome("a prompt that another tenant has in the cache", outcome, own > 0 and others == 0)]


def fuzz(url: str, headers: Mapping[str, str], cases: int, seed: int) -> Outcome:
    """`schemathesis` with so many valid and invalid requests to every operation."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "cases.ndjson")
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--mode", "all"),
            *("--max-examples", str(cases), "--seed", str(seed), "--request-timeout", "30", "--continue-on-failure"),
            *(word for name, value in headers.items() for word in ("--header", f"{name}: {value}")),
            *("--report-ndjson-path", str(report), "--suppress-health-check", "all", "--no-color"),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        codes = re.findall(r'"status_code": ?(\d{3})', report.read_text()) if report.exists() else []
    if ended.returncode:
        print(ended.stdout[-4000:], ended.stderr[-2000:], file=sys.stderr)
    by_code = ", ".join(f"{codes.count(code)}x {code}" for code in sorted(set(codes)))
    return Outcome(f"schemathesis, {len(codes):,} cases", by_code, not ended.returncode and len(codes) >= cases)


def secrets_told(secrets: Iterable[str]) -> Outcome:
    """Looks for them in all that the newest system here writes to its folder of logs."""
    sought = [secret.encode() for secret in secrets]
    folders = Path(tempfile.gettempdir()).glob("glimprouter-*/session_latest/logs")
    newest = max(folders, key=lambda folder: folder.stat().st_ctime)
    logs = [path for path in newest.rglob("*") if path.is_file()]
    told = {path.name for path in logs if any(secret in path.read_bytes() for secret in sought)}
    outcome = ", ".join(sorted(told)) or f"in none of {len(logs)} files"
    return Outcome("keys in logs, after all this", outcome, bool(logs) and not told)


async def well(office: Office) -> Outcome:
    async with httpx.AsyncClient(base_url=office.url, timeout=60, headers=office.headers("healthy")) as http:
        ready = await http.get("/readyz")
        answered = await http.post("/v1/chat/completions", json={"model": "glimpse", "messages": [MESSAGE]})
    return Outcome(
        "the server afterwards",
        f"readyz {ready.status_code}, a question {answered.status_code}",
        ready.status_code == answered.status_code == 200,
    )


def _codes(codes: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(codes)))


@contextmanager
def said(outcomes: list[Outcome]) -> Iterator[list[Outcome]]:
    """Says what is added, as it comes."""
    before = len(outcomes)
    yield outcomes
    for outcome in outcomes[before:]:
        print(f"{'ok ' if outcome.right else 'BAD'} {outcome.attack}: {outcome.outcome}", flush=True)


def main() -> None:
    options_of = parser("loadtest.attacks", __doc__, concurrency=200)
    options_of.add_argument("--cases", type=at_least_one, default=2000, help="of schemathesis, for each operation")
    options_of.add_argument("--seconds", type=at_least_one, default=15, help="of each slow attack")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("it needs a system that is set up for this, so it starts its own: leave --url out")
    questions = generated(options.seed, 400)
    outcomes: list[Outcome] = []
    with tenanted(options.profile, options.port, TENANTS, admin_key=ADMIN) as office:
        for attack in (
            keyless(office),
            oversized(office),
            neighbours(office, questions),
            slow(office, questions, options.concurrency, options.seconds),
        ):
            with said(outcomes):
                outcomes += asyncio.run(attack)
        with said(outcomes):
            outcomes.append(fuzz(office.url, office.headers("fuzzer"), options.cases, options.seed))
        with said(outcomes):
            outcomes += [secrets_told([*office.keys.values(), ADMIN]), asyncio.run(well(office))]
    print(table(["attack", "what happened"], [[one.attack, one.outcome] for one in outcomes]))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    if not all(one.right for one in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
