import json
from collections.abc import Sequence

from scripted import QUESTIONS, Scripted

from loadtest.client import Client, Reply, Step
from loadtest.hops import Count, count, measure, read_options, shown


def reply(models: Sequence[str], *, hops: int, escalations: int) -> Reply:
    steps = tuple(Step(index, model, 0.1, 5, 1.0, "so.\n\n") for index, model in enumerate(models))
    return Reply("", "", 50, 40, 20, 1.0, hops, escalations, steps)


def test_hops_of_each_model() -> None:
    by_small = count(reply(["small", "small", "large", "small"], hops=4, escalations=1), thinks=True)
    assert (by_small.small_hops, by_small.kept, by_small.paper_calls) == (2, True, 9)
    by_large = count(reply(["small", "small", "large"], hops=2, escalations=1), thinks=True)
    assert (by_large.small_hops, by_large.kept) == (1, True)
    no_answer = count(reply(["small", "large", "small"], hops=3, escalations=1), thinks=False)
    assert (no_answer.small_hops, no_answer.paper_calls) == (2, 6)


def test_bound_broken() -> None:
    assert count(reply(["small"] * 4, hops=4, escalations=1), thinks=True).kept
    assert not count(reply(["small"] * 4, hops=5, escalations=1), thinks=True).kept


def test_engines_overrule_the_reply() -> None:
    found = count(reply(["small", "large"], hops=3, escalations=1), thinks=True, engines={"small": 1, "large": 2})
    assert (found.kept, found.agreed) == (True, True)
    more = count(reply(["small", "large"], hops=3, escalations=1), thinks=True, engines={"small": 3, "large": 2})
    assert (more.kept, more.agreed) == (False, False)


async def test_measured_and_shown(server: Scripted) -> None:
    async with Client("http://scripted", transport=server.transport) as client:
        counts = await measure(client, await client.served(), QUESTIONS, None, read_options([]))
    assert len(counts) == 20
    text = shown(counts)
    assert "| all     |" in text
    assert "from the replies: on 20 of 20 problems" in text
    assert json.dumps(server.bodies[0]["glimpse"]) == '{"include_steps": true, "threshold": null, "answer_by": "large"}'


def test_shown_with_engines() -> None:
    text = shown([Count(3, 1, 4, 2, 7, 2, 2), Count(3, 1, 4, 2, 7, 2, 3)])
    assert "counted in the engines: on 2 of 2 problems" in text
    assert "count the same hops: on 1 of 2 problems" in text
    assert "8 hops where the paper's protocol makes 14 calls (1.8 times as many)" in text
