"""The routed system on the embedded pair: same text, few hops, an account that agrees with the engines'."""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import httpx
import pytest
import torch
from asking import STEPS, ask, ask_all, problems, said
from system import System
from transformers import AutoModelForCausalLM, AutoTokenizer

from router.glimpse import MAX_ENTROPY, TOP, entropy
from router.hop import Chunk, Hop, StrangePair
from router.request import Request, Sampling
from router.service import Defaults, StepRouter
from router.vocabulary import Vocabulary

PROBLEMS = 200
SMALL = "deployments/pocket/models/small"
BY_TOKEN = {"threshold": 3.0, "token_threshold": 0.5, **STEPS}


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [problem.question for problem in problems(PROBLEMS)]


@pytest.fixture(scope="module")
async def small_alone(system: System, questions: list[str]) -> list[tuple[str, str, int, str]]:
    async with httpx.AsyncClient(base_url=system.url, timeout=120) as client:
        return [said(reply) for reply in await ask_all(client, questions, "small", at_a_time=16)]


@pytest.mark.parametrize(("at_a_time", "count"), [(1, 50), (16, PROBLEMS)])
async def test_always_small_is_small_alone(
    client: httpx.AsyncClient,
    questions: list[str],
    small_alone: list[tuple[str, str, int, str]],
    at_a_time: int,
    count: int,
) -> None:
    """Design rule 8, through the whole served stack."""
    glimpse = {"threshold": 3.0, "answer_by": "small"}
    routed = await ask_all(client, questions[:count], at_a_time=at_a_time, glimpse=glimpse)
    assert [said(reply) for reply in routed] == small_alone[:count]


async def test_gating_changes_no_token_that_it_lets_pass(
    client: httpx.AsyncClient, questions: list[str], small_alone: list[tuple[str, str, int, str]]
) -> None:
    """A gate just below the most that an entropy can be looks at every step and lets nearly all of them pass."""
    glimpse = {"threshold": 2.99, "answer_by": "small", **STEPS}
    routed = await ask_all(client, questions[:60], at_a_time=8, glimpse=glimpse)
    passed = [i for i, reply in enumerate(routed) if reply["glimpse"]["escalations"] == 0]
    assert len(passed) > 10
    assert [said(routed[i]) for i in passed] == [small_alone[i] for i in passed]


async def test_a_run_of_easy_steps_is_one_hop(client: httpx.AsyncClient, system: System, questions: list[str]) -> None:
    escalated = 0
    for question in questions[:40]:
        before = (await system.account("small"))["hops"], (await system.account("large"))["hops"]
        reply = await ask(client, question, glimpse=STEPS)
        small = (await system.account("small"))["hops"] - before[0]
        large = (await system.account("large"))["hops"] - before[1]
        escalations = reply["glimpse"]["escalations"]
        assert small <= escalations + 1
        assert small + large == reply["glimpse"]["hops"]
        escalated += escalations
    assert escalated > 20


async def test_steps_say_who_wrote_them_and_why(client: httpx.AsyncClient, questions: list[str]) -> None:
    replies = await ask_all(client, questions[:40], at_a_time=4, glimpse=STEPS)
    for reply in replies:
        steps = reply["glimpse"]["steps"]
        assert "".join(step["text"] for step in steps) == reply["choices"][0]["message"]["reasoning_content"]
        assert [step["index"] for step in steps] == list(range(len(steps)))
        assert sum(s["tokens"] for s in steps) == reply["usage"]["completion_tokens_details"]["reasoning_tokens"]
        for step in steps:
            assert (step["entropy"] > reply["glimpse"]["threshold"]) == (step["model"] == "large")
        by_model = reply["usage"]["by_model"]
        share = by_model["large"]["completion_tokens"] / reply["usage"]["completion_tokens"]
        assert reply["glimpse"]["large_token_share"] == pytest.approx(share)
    assert {step["model"] for reply in replies for step in reply["glimpse"]["steps"]} == {"small", "large"}


async def test_entropies_are_those_of_the_small_models_own_probabilities(
    client: httpx.AsyncClient, questions: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    for question, reply in zip(
        questions[:16], await ask_all(client, questions[:16], at_a_time=8, glimpse=STEPS), strict=True
    ):
        steps = reply["glimpse"]["steps"]
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        begins = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + "".join(step["text"] for step in steps), return_tensors="pt")["input_ids"]
        closed = 1  # the end of thinking is of the last step, but of no text
        assert ids.shape[1] + closed == begins + sum(step["tokens"] for step in steps)
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(dim=-1)
        for step in steps:
            top = logprobs[begins - 1].topk(TOP).values.tolist()
            assert step["entropy"] == pytest.approx(entropy(top), abs=1e-3)
            begins += step["tokens"]


async def test_tokens_above_their_threshold_are_the_large_models(
    client: httpx.AsyncClient, questions: list[str]
) -> None:
    """Each by itself, in the middle of a step too, and no others."""
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    mixed = 0
    for question, reply in zip(
        questions[:16], await ask_all(client, questions[:16], at_a_time=8, glimpse=BY_TOKEN), strict=True
    ):
        steps = reply["glimpse"]["steps"]
        assert "".join(step["text"] for step in steps) == reply["choices"][0]["message"]["reasoning_content"]
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        begins = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(prompt + "".join(step["text"] for step in steps), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(dim=-1)
        for step in steps:
            places = range(begins - 1, begins - 1 + step["tokens"])
            unsure = [entropy(logprobs[i].topk(TOP).values.tolist()) > BY_TOKEN["token_threshold"] for i in places]
            by_large = step.get("large_tokens", step["tokens"] if step["model"] == "large" else 0)
            assert by_large == sum(unsure)
            mixed += 0 < by_large < step["tokens"]
            begins += step["tokens"]
    assert mixed > 8


@pytest.mark.parametrize(
    ("model", "glimpse", "at_a_time", "count"),
    [
        ("glimpse", STEPS, 1, 12),
        ("glimpse", STEPS, 8, 32),
        ("glimpse", BY_TOKEN, 8, 32),
        ("small", STEPS, 8, 32),
        ("large", STEPS, 4, 32),
    ],
)
async def test_usage_is_what_the_engines_counted(
    client: httpx.AsyncClient,
    system: System,
    questions: list[str],
    model: str,
    glimpse: dict[str, object],
    at_a_time: int,
    count: int,
) -> None:
    """Design rule 12: the engines' own totals are what was committed and what was thrown away."""
    before = await system.generated()
    replies = await ask_all(client, questions[:count], model, at_a_time=at_a_time, glimpse=glimpse)
    after = await system.generated()
    committed = sum(reply["usage"]["completion_tokens"] for reply in replies)
    discarded = sum(reply["glimpse"]["discarded_tokens"] for reply in replies)
    assert sum(after.values()) - sum(before.values()) == committed + discarded
    for reply in replies:
        usage = reply["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert sum(m["completion_tokens"] for m in usage["by_model"].values()) == usage["completion_tokens"]


async def test_a_sampled_request_is_the_same_for_the_same_seed(client: httpx.AsyncClient) -> None:
    question = problems(1, seed=5)[0].question
    drawn = {"temperature": 1.0, "max_tokens": 120}
    first, again = [await ask(client, question, "small", seed=11, **drawn) for _ in range(2)]
    other = await ask(client, question, "small", seed=12, **drawn)
    assert said(first) == said(again)
    assert said(first) != said(other)


async def test_the_share_of_the_large_model_is_bounded(client: httpx.AsyncClient, questions: list[str]) -> None:
    spent = 0
    replies = await ask_all(
        client, questions[:30], at_a_time=4, glimpse={"threshold": 0.0, "max_large_share": 0.2, **STEPS}
    )
    for reply in replies:
        longest = max(step["tokens"] for step in reply["glimpse"]["steps"] if step["model"] == "large")
        tokens = reply["usage"]["completion_tokens"]
        assert reply["glimpse"]["large_token_share"] * tokens <= 0.2 * tokens + max(longest, 12)
        spent += reply["glimpse"].get("large_share_spent", False)
    assert spent > 0


async def written(system: System, model: str, hop: Hop) -> Chunk:
    """A hop in one piece."""
    return [chunk async for chunk in system.handle(model).options(stream=True).write.remote(hop)][-1]


async def test_engines_go_on_where_they_were(client: httpx.AsyncClient, questions: list[str]) -> None:
    again = {"small": 0, "large": 0}
    for reply in await ask_all(client, questions[:24], glimpse=STEPS, at_a_time=8):
        steps = reply["glimpse"]["steps"]
        hops = [list(hop) for _, hop in itertools.groupby(steps, lambda step: (step["model"], step["prefix_tokens"]))]
        for before, hop in itertools.pairwise(hop for hop in hops if hop[0]["model"] == "large"):
            # The last token that it drew it has not read.
            assert hop[0]["cached_tokens"] == read_by(before) - 1
            again["large"] += 1
        for before, hop in itertools.pairwise(hop for hop in hops if hop[0]["model"] == "small"):
            # That is the glimpse here, and there may have been another since, at a step that it wrote nothing of.
            assert hop[0]["cached_tokens"] >= read_by(before)
            again["small"] += 1
        assert reply["glimpse"]["discarded_tokens"] == reply["glimpse"]["escalations"], (
            "one token a glimpse, and no more"
        )
    assert min(again.values()) > 8


def read_by(hop: list[dict[str, Any]]) -> int:
    """Tokens of its prefix and its steps."""
    return int(hop[0]["prefix_tokens"] + sum(step["tokens"] for step in hop))


async def test_a_hop_of_another_pair_is_refused(system: System) -> None:
    """Design rule 1."""
    hop = Hop(
        pair="0123456789abcdef",
        prefix=array("i", [5, 6, 7]).tobytes(),
        sampling=Sampling(temperature=0.0),
        thinking_tokens=4,
        tokens=4,
    )
    with pytest.raises(StrangePair, match="0123456789abcdef"):
        await written(system, "small", hop)


async def test_what_a_raised_gate_lets_pass_is_told(client: httpx.AsyncClient, system: System) -> None:
    """Without it a controller would not see that a threshold is too high."""
    vocabulary = Vocabulary.load(SMALL)
    pair = (await client.get("/v1/models/glimpse")).json()["glimpse"]["pair"]
    above = 0
    for problem in problems(8, seed=9):
        hop = Hop(
            pair=pair,
            prefix=vocabulary.render(problem.messages).tobytes(),
            sampling=Sampling(temperature=0.0),
            token_gate=MAX_ENTROPY,
            watched=0.5,
            thinking_tokens=400,
            tokens=400,
        )
        chunk = await written(system, "small", hop)
        unsure = {step.entropy for step in chunk.steps if step.entropy is not None and step.entropy > 0.5}
        assert chunk.end is not None
        assert unsure <= set(chunk.end.watched)
        assert all(entropy > 0.5 for entropy in chunk.end.watched)
        above += len(unsure)
    assert above >= 3


async def test_a_transcript_replays_hop_by_hop(client: httpx.AsyncClient, system: System) -> None:
    """Design rule 8: the hops of a routed request, asked again, give the same tokens."""
    card = (await client.get("/v1/models/glimpse")).json()["glimpse"]
    vocabulary = Vocabulary.load(SMALL)
    hops: list[tuple[str, Hop, Chunk]] = []

    class Recording:
        def __init__(self, model: str) -> None:
            self.model = model

        async def write(self, hop: Hop):  # type: ignore[no-untyped-def]
            chunk = await written(system, self.model, hop)
            hops.append((self.model, hop, chunk))
            yield chunk

    router = StepRouter(
        card["pair"],
        {"small": vocabulary, "large": Vocabulary.load("deployments/pocket/models/large")},
        {"small": Recording("small"), "large": Recording("large")},  # type: ignore[dict-item]
        4096,
        Defaults(1.0, "large", 1.0, 1024, 256, 256, 512, 600.0),
    )
    for n, problem in enumerate(problems(10, seed=9)):
        request = Request(id=f"replay-{n}", messages=problem.messages, sampling=Sampling(temperature=0.0))
        async for _ in router.write(request):
            pass
    assert len(hops) > 20
    for model, hop, chunk in hops:
        again = await written(system, model, hop)
        assert (again.thought, again.answer) == (chunk.thought, chunk.answer)
