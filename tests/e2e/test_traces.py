"""Traces as they arrive at a real OTLP receiver, from every process of the system."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal

import httpx
import pytest
from asking import problems
from system import System, at_work, back, settled

from loadtest.receiver import Receiver, Span

pytestmark = pytest.mark.skipif(
    "GLIMPROUTER_TEST_URL" in os.environ, reason="a system that runs already sends its spans elsewhere"
)

CALLER = "b7ad6b7169203331"
HOPS = ("run small", "step large")


# As long as any that the pair was trained on: three steps an item, and two more.
QUESTION = (
    "Grace starts with 61 coins and sells 3 orange coats, then buys 3 marble baskets, then sells 2 yellow telescopes, "
    "then buys 3 spotted shields, then sells 2 fancy sundials, then buys 1 tiny trumpet, then sells 1 crystal helmet, "
    "then buys 3 heavy dolls, then sells 2 simple barrels. How many coins does she have now?"
)
STEPS = 29


async def traced(
    client: httpx.AsyncClient, question: str, *, sampled: bool = True, stream: bool = False, **fields: object
) -> tuple[str, dict]:
    """A request of a trace of its own: the trace's id, and the reply's account with its steps."""
    trace = secrets.token_hex(16)
    body = {
        "model": "glimpse",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": stream,
        "glimpse": {"include_steps": True, **fields},
    }
    headers = {"traceparent": f"00-{trace}-{CALLER}-0{sampled:d}"}
    response = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["x-trace-id"] == trace
    if not stream:
        return trace, response.json()["glimpse"]
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    parts = [chunk["glimpse"] for chunk in chunks if "glimpse" in chunk]
    return trace, parts[-1] | {"steps": [part["step"] for part in parts if "step" in part]}


async def told(receiver: Receiver, trace: str) -> list[Span]:
    return await asyncio.to_thread(receiver.complete, trace)


def check_tree(spans: list[Span], glimpse: dict) -> Span:
    """What holds for every request's trace; returns its `chat glimpse`."""
    ids = {span.id: span for span in spans}
    assert [span.name for span in spans if span.parent not in ids and span.parent != CALLER] == []
    (chat,) = (span for span in spans if span.name == "chat glimpse")

    def above(span: Span) -> list[Span]:
        parent = ids.get(span.parent)
        return [parent, *above(parent)] if parent else []

    hops = [span for span in spans if span.name in HOPS]
    for hop in hops:
        assert chat in above(hop)
        assert chat.began <= hop.began <= hop.ended <= chat.ended
    steps = [span for span in spans if span.name == "glimpse.step"]
    assert sorted(step.attributes["glimpse.step.index"] for step in steps) == list(range(len(steps)))
    assert len(steps) == len(glimpse["steps"])
    for step in steps:
        said = glimpse["steps"][step.attributes["glimpse.step.index"]]
        hop = ids[step.parent]
        assert step.attributes["glimpse.decision"] == said["model"] == hop.name.split()[1]
        assert step.attributes["glimpse.entropy"] == pytest.approx(said["entropy"])
        assert step.ms == pytest.approx(said["duration_ms"], abs=0.01)
        assert hop.began <= step.began <= step.ended <= hop.ended
    for engine in (span for span in spans if span.name == "llm_request"):
        hop = next(span for span in above(engine) if span.name in HOPS)
        # The two are of different processes of one machine.
        assert hop.began - 2e6 <= engine.began <= engine.ended <= hop.ended + 2e6
    return chat


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_of_thirty_steps_is_one_tree(
    client: httpx.AsyncClient, receiver: Receiver, stream: bool
) -> None:
    for _ in range(3):
        trace, glimpse = await traced(client, QUESTION, stream=stream, threshold=0.5)
        assert len(glimpse["steps"]) == STEPS
        spans = await told(receiver, trace)
        chat = check_tree(spans, glimpse)
        hops = [span for span in spans if span.name in HOPS]
        assert len(hops) == glimpse["hops"] >= 4
        in_hops = sum(hop.ms for hop in hops) / chat.ms
        # Between two hops a machine may have other things to do.
        if in_hops >= 0.95:
            break
    assert 0.95 <= in_hops <= 1.0
    # A hop that ends in the middle of its text is aborted in the engine, which then has no span of its own.
    engines = {span.parent for span in spans if span.name == "llm_request"}
    assert {hop.id for hop in hops if hop.name == "step large"} <= engines
    assert {span.attributes["glimpse.replica"] for span in hops} != {""}


async def test_a_resumed_hop_is_in_the_tree_with_the_one_it_replaces(
    client: httpx.AsyncClient, receiver: Receiver, system: System
) -> None:
    asked = asyncio.create_task(traced(client, QUESTION, stream=True, threshold=3.0))
    replica = (await at_work(system, "small"))["pid"]
    os.kill(replica, signal.SIGKILL)
    trace, glimpse = await asked
    assert glimpse["resumed_hops"] >= 1
    spans = await told(receiver, trace)
    chat = check_tree(spans, glimpse)
    hops = sorted((span for span in spans if span.name in HOPS), key=lambda span: span.began)
    failed = [hop for hop in hops if hop.failed]
    # Where the next replica takes long to start, the hop is asked again without having been lost.
    lost = [hop for hop in failed if hop.attributes["error.type"] != "Unheard"]
    assert len(lost) == glimpse["resumed_hops"]
    for one, successor in zip(failed, hops[hops.index(failed[0]) + 1 :], strict=False):
        assert successor.links == (one.id,)
        assert successor.attributes["glimpse.attempt"] == one.attributes["glimpse.attempt"] + (one in lost)
    assert sum(hop.ms for hop in hops) == pytest.approx(chat.ms, rel=0.05)
    await back(system, "small", replica)
    assert await settled(system, within_s=10) == {"small": 0, "large": 0}


async def test_a_hop_that_guessed_wrong_ends_when_the_next_one_comes(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    guesses, endings = [], []
    for problem in problems(60):
        if "left" in endings:  # the small model may be at the end of its step before it could be told
            break
        trace, glimpse = await traced(client, problem.question, threshold=3.0, token_threshold=0.5)
        hops = [span for span in await told(receiver, trace) if span.name in HOPS]
        assert len(hops) == glimpse["hops"]
        guesses += [hop.attributes["glimpse.guess"] for hop in hops if "glimpse.guess" in hop.attributes]
        endings += [hop.attributes["glimpse.ending"] for hop in hops]
    assert 0 < endings.count("left") <= guesses.count("wrong")


async def test_an_unsampled_request_sends_nothing_from_any_process(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    question, before = problems(1)[0].question, receiver.traces
    unsampled, glimpse = await traced(client, question, sampled=False)
    assert glimpse["hops"] > 0
    # By the time a later request's spans are here, those of an earlier one would be.
    sampled, glimpse = await traced(client, question)
    check_tree(await told(receiver, sampled), glimpse)
    # Under no other trace's id either.
    assert unsampled not in receiver.traces
    assert receiver.traces - before == {sampled}


async def test_a_request_without_a_caller_leaves_it_to_the_sampler(
    client: httpx.AsyncClient, receiver: Receiver
) -> None:
    """The system here is told to sample nothing by itself."""
    before = receiver.traces
    body = {"model": "glimpse", "messages": [{"role": "user", "content": "2 + 2?"}], "max_tokens": 40}
    reply = await client.post("/v1/chat/completions", json=body)
    assert int(reply.headers["x-trace-id"], 16) > 0
    sampled, _ = await traced(client, problems(1)[0].question)
    assert await told(receiver, sampled) != []
    assert receiver.traces - before == {sampled}
