from __future__ import annotations

import pytest
import simpy

from loadtest.client import Reply, Step
from loadtest.simulation import HopWork, Pace, Replica, System, lengthened, simulate, trace_of
from router.request import MODELS

PACE = Pace(base_s=0.01, each_s=0.0, places=4)


def finished(pace: Pace, *hops: tuple[float, int], reads: int = 0) -> list[float]:
    """When each of these hops (arrival, tokens) was written by one replica."""
    world = simpy.Environment()
    replica = Replica(world, pace)
    ends: dict[int, float] = {}

    def come(n: int, at: float, tokens: int):
        yield world.timeout(at)
        yield replica.write(HopWork("small", tokens, reads))
        ends[n] = world.now

    for n, (at, tokens) in enumerate(hops):
        world.process(come(n, at, tokens))
    world.run(until=1000)
    return [ends[n] for n in range(len(hops))]


def test_a_hop_alone_takes_its_tokens_times_an_iteration() -> None:
    assert finished(PACE, (5.0, 100)) == [pytest.approx(6.0)]


def test_hops_share_an_iteration() -> None:
    # The second one comes while an iteration is under way, and waits for half of one.
    assert finished(PACE, (0.0, 100), (0.5, 100)) == [pytest.approx(1.0), pytest.approx(1.505)]


def test_more_hops_make_longer_iterations() -> None:
    pace = Pace(base_s=0.0, each_s=0.01, places=4)
    # 50 tokens alone (0.5 s), then both at half the rate: 1 s for the first one's other 50, then 50 alone.
    assert finished(pace, (0.0, 100), (0.5, 100)) == [pytest.approx(1.5), pytest.approx(2.005)]


def test_what_one_hop_reads_keeps_all_of_them_waiting() -> None:
    pace = Pace(0.01, 0.0, places=4, read_s=0.001)
    assert finished(pace, (0.0, 100), reads=200) == [pytest.approx(1.2)]
    # The first one has 0.3 s of tokens left when the second one's 0.2 s of reading begins.
    first, second = finished(pace, (0.0, 100), (0.9, 100), reads=200)
    assert first == pytest.approx(1.4)
    assert second == pytest.approx(2.105)


def test_pools_that_share_cores_slow_each_other_down() -> None:
    own = Pace(0.01, 0.0, places=8)
    shared = Pace(0.01, 0.0, places=8, crowded=2.0)
    seen = [
        simulate(
            System({"small": 1, "large": 1}, dict.fromkeys(MODELS, pace), 0.0),
            traces,
            users=2,
            think_s=0.0,
            seconds=200,
            seed=1,
        )
        for pace, traces in [(own, [TRACE]), (shared, [TRACE]), (shared, [TRACE[:1]])]
    ]
    apart, together, one_pool = (one.latency_s(50) for one in seen)
    assert together > 1.1 * apart
    assert one_pool == pytest.approx(0.5, rel=0.02)


def test_who_finds_no_place_waits_for_one() -> None:
    pace = Pace(0.01, 0.0, places=1)
    assert finished(pace, (0.0, 100), (0.0, 100), (0.0, 50)) == [pytest.approx(t) for t in (1.0, 2.0, 2.5)]


TRACE = (HopWork("small", 50), HopWork("large", 20), HopWork("small", 30))


def system(small: int = 1, large: int = 1, *, places: int = 8, each_s: float = 0.0) -> System:
    pace = Pace(0.01, each_s, places)
    return System({"small": small, "large": large}, {"small": pace, "large": pace}, hop_s=0.1)


def test_a_single_user_sees_the_sum_of_the_hops() -> None:
    seen = simulate(system(), [TRACE], users=1, think_s=0.0, seconds=200, seed=1)
    assert seen.latency_s(50) == pytest.approx(0.1 * 3 + 1.0)
    assert seen.tokens_per_s == pytest.approx(100 / 1.3, rel=0.02)
    assert seen.taken["large"] == pytest.approx(0.2 / 1.3 / 8, rel=0.05)


def test_littles_law_holds() -> None:
    seen = simulate(system(each_s=0.005), [TRACE], users=40, think_s=5.0, seconds=2000, seed=1)
    rate = seen.tokens_per_s / 100
    mean = sum(seen.latencies_s) / len(seen.latencies_s)
    assert rate * (mean + 5.0) == pytest.approx(40, rel=0.03)


def test_more_replicas_shorten_the_wait() -> None:
    one, four = (simulate(system(n, n, places=2), [TRACE], users=16, think_s=0.0, seconds=300, seed=1) for n in (1, 4))
    assert four.latency_s(95) < one.latency_s(95) / 2
    assert four.tokens_per_s > 2 * one.tokens_per_s


def test_a_pace_is_fitted_to_what_was_measured() -> None:
    pace = Pace.fitted([(1, 0.012), (8, 0.026), (16, 0.042)], places=64)
    assert pace.base_s == pytest.approx(0.010, rel=0.01)
    assert pace.each_s == pytest.approx(0.002, rel=0.01)
    assert Pace.fitted([(1, 0.02)], places=1) == Pace(0.02, 0.0, 1)
    assert Pace.fitted([(1, 0.03), (8, 0.01)], places=1).each_s == 0.0


def test_a_trace_groups_easy_steps_and_counts_glimpses_and_the_answer() -> None:
    steps = [("small", 10), ("small", 5), ("large", 20), ("small", 7), ("large", 9)]
    told = tuple(Step(n, model, 0.1, tokens, 1.0, "", 90 + n, 64) for n, (model, tokens) in enumerate(steps))
    reply = Reply("", "", 61, 51, 39, 1.0, 5, 2, told)
    assert trace_of(reply) == (
        HopWork("small", 16, reads=26),
        HopWork("large", 20, reads=28),
        HopWork("small", 8, reads=29),
        HopWork("large", 9, reads=30),
        HopWork("large", 10),
    )


def test_a_step_of_both_models_is_no_hop() -> None:
    told = (Step(0, "small", 0.1, 10, 1.0, "", 90, 0, large_tokens=2),)
    with pytest.raises(ValueError, match="token"):
        trace_of(Reply("", "", 12, 10, 2, 1.0, 5, 2, told))


def test_a_large_model_that_answers_reads_what_it_has_not() -> None:
    told = tuple(Step(n, "small", 0.1, 10, 1.0, "", 90, 0) for n in range(2))
    assert trace_of(Reply("", "", 25, 20, 5, 1.0, 2, 0, told))[-1] == HopWork("large", 5, reads=110)


def test_requests_go_on_until_they_are_as_long_as_wanted() -> None:
    longer = lengthened([TRACE, TRACE[:1]], 250, seed=1)
    assert len(longer) == 2
    assert all(250 <= sum(hop.tokens for hop in trace) < 350 for trace in longer)
    assert longer[0][: len(TRACE)] == TRACE
    assert lengthened([TRACE], 0, seed=1) == [TRACE]
