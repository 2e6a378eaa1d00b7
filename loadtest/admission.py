"""Offers requests evenly over a minute to two routers, and counts how many a tenant's limit lets in.

    python -m loadtest.admission --offered 600 --limit 60

Starts a system of its own with PostgreSQL and Redis.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import httpx

from loadtest.command import MeasuringError, at_least_one, parser, run
from loadtest.table import table
from loadtest.tenants import Office, tenanted

BODY = {"model": "small", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


async def offer(office: Office, offered: int, seconds: float) -> Counter[int]:
    """Status codes of requests that come evenly, whatever becomes of those before."""
    codes: Counter[int] = Counter()
    async with httpx.AsyncClient(
        base_url=office.url, timeout=60, headers=office.headers("limited"), limits=httpx.Limits(max_connections=None)
    ) as client:

        async def one() -> None:
            reply = await client.post("/v1/chat/completions", json=BODY)
            codes[reply.status_code] += 1

        began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for n in range(offered):
                await asyncio.sleep(max(0.0, began + n * seconds / offered - asyncio.get_running_loop().time()))
                group.create_task(one())
    return codes


def main() -> None:
    options_of = parser("loadtest.admission", __doc__, concurrency=None)
    options_of.add_argument("--offered", type=at_least_one, default=600)
    options_of.add_argument("--limit", type=at_least_one, default=60, help="requests a minute")
    options = options_of.parse_args()
    if options.url:
        raise MeasuringError("the tenant and its limit are its own, so is the system: leave --url out")
    policy = {"limited": {"requests_per_minute": options.limit}}
    with tenanted(options.profile, options.port, policy, routers=2) as office:
        codes = asyncio.run(offer(office, options.offered, 60.0))
    print(table(["status", "requests"], [[str(code), str(count)] for code, count in sorted(codes.items())]))
    if options.json:
        options.json.write_text(json.dumps(codes))


if __name__ == "__main__":
    run(main)
