"""The embedded pair where something drafts for either model: a second system on the machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from asking import ask, ask_all, problems, said
from system import System, start

from router.answers import extract

PROFILE = Path("deployments/profiles/pocket-drafting.yaml")
RAMBLE = {"model": "glimpse", "prompt": "1 2 3 4 5 6 7 8 9", "max_tokens": 400, "temperature": 1.5, "top_k": 40}


@pytest.fixture(scope="module")
def drafting() -> Iterator[System]:
    running = start(str(PROFILE))
    yield running
    running.stop()


@pytest.fixture
async def http(drafting: System) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=drafting.url, timeout=120) as http:
        yield http


@pytest.mark.parametrize("drawn", [{}, {"temperature": 0.8, "top_p": 0.95}, {"temperature": 0.8, "top_k": 20}])
async def test_the_large_model_is_as_right_as_ever(http: httpx.AsyncClient, drawn: dict[str, float]) -> None:
    asked = problems(24)
    replies = await ask_all(http, [one.question for one in asked], "large", at_a_time=8, **drawn)
    right = sum(
        extract(reply["choices"][0]["message"]["content"]) == Fraction(problem.answer)
        for reply, problem in zip(replies, asked, strict=True)
    )
    assert right >= 22


BY_TOKEN = {"threshold": 3.0, "token_threshold": 0.5}


@pytest.mark.parametrize(("model", "glimpse"), [("glimpse", {}), ("glimpse", BY_TOKEN), ("small", {}), ("large", {})])
async def test_greedy_replies_are_those_without_drafts(
    http: httpx.AsyncClient, client: httpx.AsyncClient, model: str, glimpse: dict[str, float]
) -> None:
    questions = [one.question for one in problems(24)]
    drafted, plain = [await ask_all(one, questions, model, at_a_time=8, glimpse=glimpse) for one in (http, client)]
    assert [said(reply) for reply in drafted] == [said(reply) for reply in plain]


async def test_greedy_replies_do_not_depend_on_who_samples_beside_them(http: httpx.AsyncClient) -> None:
    questions = [one.question for one in problems(16)]
    alone = [said(await ask(http, question, "large")) for question in questions]
    beside, _ = await asyncio.gather(
        ask_all(http, questions, "large", at_a_time=4),
        ask_all(http, questions, at_a_time=4, temperature=1.0, top_p=0.9, top_k=10),
    )
    assert [said(reply) for reply in beside] == alone


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        ("small", {"temperature": 1.0}),
        ("small", {"temperature": 1.5, "top_k": 10}),
        ("small", {"temperature": 1.0, "top_p": 0.9}),
        ("large", {"temperature": 1.0}),
        ("large", {"temperature": 1.5, "top_k": 10}),
        ("large", {"temperature": 1.5, "top_p": 0.9}),
    ],
)
async def test_what_is_sampled_is_distributed_as_without_drafts(
    http: httpx.AsyncClient, client: httpx.AsyncClient, model: str, drawn: dict[str, float]
) -> None:
    drafted, plain = [await replies(one, model, 250, **drawn) for one in (http, client)]
    often = [text for text, times in (Counter(drafted) + Counter(plain)).items() if times >= 8]
    assert len(often) > 5
    seen = np.array([[*map(some.count, often), sum(text not in often for text in some)] for some in (drafted, plain)])
    seen = seen[:, seen.any(axis=0)]
    expected = seen.mean(axis=0)
    chi_squared, freedom = ((seen - expected) ** 2 / expected).sum(), seen.shape[1] - 1
    assert chi_squared < freedom + 4 * np.sqrt(2 * freedom)


async def replies(http: httpx.AsyncClient, model: str, count: int, **drawn: float) -> list[str]:
    """The first three tokens of what a model says, of which two are drafted."""
    asked = {"model": model, "prompt": "1 2 3 4 5 6 7 8 9", "max_tokens": 3, **drawn}
    limit = asyncio.Semaphore(16)

    async def one(seed: int) -> str:
        async with limit:
            response = await http.post("/v1/completions", json=asked | {"seed": seed})
        return str(response.raise_for_status().json()["choices"][0]["text"])

    return await asyncio.gather(*map(one, range(count)))


async def test_no_ramble_ends_the_engine(http: httpx.AsyncClient) -> None:
    rambles = [http.post("/v1/completions", json=RAMBLE | {"seed": seed}) for seed in range(16)]
    assert {response.status_code for response in await asyncio.gather(*rambles)} == {200}


async def test_min_p_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json=RAMBLE | {"min_p": 0.1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "min_p")


@pytest.fixture
def other_threshold(tmp_path: Path) -> Path:
    config = yaml.safe_load(PROFILE.read_text())
    config["applications"][0]["deployments"] = [{"name": "router", "user_config": {"threshold": 0.7}}]
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.skipif("GLIMPROUTER_TEST_URL" in os.environ, reason="needs to know both systems' clusters")
async def test_of_two_systems_a_rollout_changes_the_one_that_it_is_told(
    system: System, drafting: System, http: httpx.AsyncClient, client: httpx.AsyncClient, other_threshold: Path
) -> None:
    async def roll_out(**told: str) -> tuple[int, str]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | told
        command = [sys.executable, "-m", "deployments.cli", "rollout", str(other_threshold)]
        done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    async def thresholds() -> list[float]:
        return [(await one.get("/v1/models/glimpse")).json()["glimpse"]["threshold"] for one in (client, http)]

    before = await thresholds()
    assert system.cluster is not None
    assert drafting.cluster is not None
    status, told = await roll_out()
    assert status == 1
    assert " or ".join(sorted([system.cluster, drafting.cluster])) in told
    assert await thresholds() == before
    status, told = await roll_out(RAY_ADDRESS=drafting.cluster)
    assert (status, await thresholds()) == (0, [before[0], 0.7]), told
