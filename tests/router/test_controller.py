"""The controller against a clock of its own, and around pools."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recited import DEFAULTS, chat, events, router

from router.controller import Controller, Target
from router.request import Finished, Routing, StepWritten, Unavailable
from router.service import StepRouter

TEXT = "easy.\n\nhard.\n\neasy.\n\n</think>done<end>"
TARGET = Target(load=0.5, highest=2.5, gain=0.1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def controller(clock: Clock) -> Controller:
    made = Controller(TARGET, clock=clock)
    for n in range(300):
        made.saw(3.0 * (n % 100) / 100)
    return made


def loaded(controller: Controller, clock: Clock, load: float, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        controller.told(load)


def test_at_or_below_its_target_it_leaves_the_threshold_alone(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 0.5, 60)
    assert controller.threshold(1.0) == 1.0


def test_an_hour_without_requests_is_forgotten(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 1.0, 30)
    assert controller.spared == 1.0
    clock.now += 3600
    assert controller.threshold(1.0) == 1.0


def test_what_it_spares_are_the_least_unsure_steps(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 1.0, 10)
    # Half of a load too much, for ten seconds, at a gain of 0.1.
    assert controller.spared == pytest.approx(0.5, abs=0.01)
    # Of the entropies above 1.0, which lie evenly up to 3.0, the lower half.
    assert controller.threshold(1.0) == pytest.approx(2.0, abs=0.05)


def test_of_tokens_it_spares_the_same_share(controller: Controller, clock: Clock) -> None:
    controller.saw_tokens(0.5 + n / 100 for n in range(1, 101))
    loaded(controller, clock, 1.0, 10)
    assert controller.token_threshold(0.5) == pytest.approx(1.0, abs=0.02)
    assert controller.threshold(1.0) == pytest.approx(2.0, abs=0.05)
    loaded(controller, clock, 0.1, 20)
    assert controller.token_threshold(0.5) == 0.5


def test_it_never_goes_above_its_bound(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 5.0, 600)
    assert controller.spared == 1.0
    assert controller.threshold(1.0) == 2.5
    assert controller.threshold(2.7) == 2.7


def test_it_comes_back(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 1.0, 10)
    loaded(controller, clock, 0.1, 20)
    assert controller.threshold(1.0) == 1.0


def test_a_pool_that_tells_nothing_has_nothing_to_do(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 1.0, 10)
    for _ in range(120):
        clock.now += 1.0
        controller.threshold(1.0)
    assert controller.threshold(1.0) == 1.0


@given(st.lists(st.floats(0, 3)), st.lists(st.floats(0, 10)), st.floats(0, 3))
def test_whatever_it_hears_the_threshold_stays_in_bounds(seen: list[float], loads: list[float], base: float) -> None:
    clock = Clock()
    controller = Controller(TARGET, clock=clock)
    for entropy in seen:
        controller.saw(entropy)
    for load in loads:
        clock.now += 1.0
        controller.told(load)
    assert min(base, 2.5) <= controller.threshold(base) <= max(base, 2.5)


async def finished(service: StepRouter, **routing: float) -> Finished:
    last = (await events(service, chat(routing=Routing(**routing))))[-1]  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last


async def test_requests_that_name_a_threshold_keep_it() -> None:
    service, _ = router(TEXT, hard=frozenset({1}), defaults=replace(DEFAULTS, target=TARGET))
    assert service.controller is not None
    assert (await finished(service)).escalations == 1
    service.controller.spared = 1.0
    assert (await finished(service)).escalations == 0
    assert (await finished(service, threshold=1.0)).escalations == 1


async def test_a_step_that_nobody_writes_is_heard_of() -> None:
    service, pools = router(TEXT, hard=frozenset({1}), defaults=replace(DEFAULTS, target=TARGET))
    assert service.controller is not None
    pools["large"].away = True
    with pytest.raises(Unavailable):
        await events(service, chat())
    assert list(service.controller._steps) == [0.0, 2.0]


BY_TOKEN = {"threshold": 3.0, "token_threshold": 1.0}


async def test_each_step_is_heard_of_once_whoever_writes_it() -> None:
    service, _ = router(TEXT, hard=frozenset({1}), defaults=replace(DEFAULTS, target=TARGET))
    assert service.controller is not None
    for gates in ({"threshold": 1.0}, {"threshold": 3.0}, {"threshold": 1.0, "max_large_share": 0.0}, BY_TOKEN):
        heard = len(service.controller._steps)
        told = await events(service, chat(routing=Routing(**gates)))
        looked_at = [one.entropy for one in told if isinstance(one, StepWritten) and one.entropy is not None]
        assert list(service.controller._steps)[heard:] == looked_at


async def test_requests_that_name_a_token_threshold_keep_it() -> None:
    defaults = replace(DEFAULTS, threshold=3.0, token_threshold=1.0, target=TARGET)
    service, _ = router(TEXT, hard=frozenset({1}), defaults=defaults)
    assert service.controller is not None
    hard = len("hard.\n\n")
    assert (await finished(service)).escalations == hard
    service.controller.spared = 1.0
    spared = await finished(service)
    assert (spared.escalations, spared.token_threshold, spared.threshold) == (0, 2.0, 3.0)
    assert (await finished(service, token_threshold=1.0)).escalations == hard


async def test_tokens_that_a_raised_gate_lets_pass_are_heard_of() -> None:
    defaults = replace(DEFAULTS, threshold=3.0, token_threshold=1.0, target=TARGET)
    service, _ = router(TEXT, hard=frozenset({1}), defaults=defaults)
    assert service.controller is not None
    assert (await finished(service, token_threshold=2.2)).escalations == 0
    service.controller.spared = 1.0
    assert (await finished(service)).token_threshold == 2.0


async def test_a_pair_that_hands_over_no_tokens_hears_of_none() -> None:
    service, pools = router(TEXT, hard=frozenset({1}), defaults=replace(DEFAULTS, target=TARGET))
    await finished(service)
    assert [hop.watched for pool in pools.values() for hop in pool.hops] == [None] * 4
