"""The controller against a clock of its own, and around pools."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recited import DEFAULTS, Bytes, Reciter, chat, events, tokens

from router.controller import Controller, Target
from router.request import Finished, Routing
from router.service import StepRouter

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


def test_what_it_spares_are_the_least_unsure_steps(controller: Controller, clock: Clock) -> None:
    loaded(controller, clock, 1.0, 10)
    # Half of a load too much, for ten seconds, at a gain of 0.1.
    assert controller.spared == pytest.approx(0.5, abs=0.01)
    # Of the entropies above 1.0, which lie evenly up to 3.0, the lower half.
    assert controller.threshold(1.0) == pytest.approx(2.0, abs=0.05)


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


async def test_requests_that_name_a_threshold_keep_it() -> None:
    from dataclasses import replace

    text = tokens("easy.\n\nhard.\n\neasy.\n\n</think>done<end>")
    pools = {
        model: Reciter(text, 3, frozenset({1}) if model == "small" else frozenset()) for model in ("small", "large")
    }
    vocabularies = {"small": Bytes(), "large": Bytes()}
    service = StepRouter("p", vocabularies, pools, 1000, replace(DEFAULTS, target=TARGET))  # type: ignore[arg-type]
    assert service.controller is not None

    async def escalations(**fields: object) -> int:
        last = (await events(service, chat(**fields)))[-1]
        assert isinstance(last, Finished)
        return last.escalations

    assert await escalations() == 1
    service.controller.spared = 1.0
    assert await escalations() == 0
    assert await escalations(routing=Routing(threshold=1.0)) == 1
