"""What is made of a trace, without a system: times of hops and of requests, and what stands for what no engine told."""

from __future__ import annotations

import pytest

from loadtest.hop_time import HopTime, RequestTime, problems, read_options, request_time, row
from loadtest.receiver import Span

MS = 1_000_000


def span(name: str, began: float, ended: float, *, id: str = "", parent: str = "") -> Span:
    return Span("t", id or name, parent, name, int(began * MS), int(ended * MS), failed=False)


def routed() -> list[Span]:
    """A request of two hops, the first stopped by the gate, in the order in which spans happen to come."""
    return [
        span("step large", 112, 200, id="b", parent="r"),
        span("llm_request", 115, 198, parent="b"),
        span("glimpse.step", 115, 198, parent="b"),
        span("run small", 5, 110, id="a", parent="r"),
        span("chat glimpse", 0, 204, id="r"),
    ]


def test_a_trace_tells_what_lies_around_hops_and_around_engines():
    assert request_time(routed()) == RequestTime(
        ms=204,
        first_ms=5,
        between_ms=(2,),
        last_ms=4,
        hops=(HopTime("small", None, None), HopTime("large", 3, 2)),
    )


def test_traces_of_other_requests_or_cut_off_tell_nothing():
    assert request_time([span("chat small", 0, 9), span("run small", 1, 8)]) is None
    assert request_time([one for one in routed() if one.name != "chat glimpse"]) is None
    assert request_time([span("chat glimpse", 0, 9)]) is None


def test_a_hop_whose_engine_did_not_tell_counts_like_the_others_of_its_model():
    told = RequestTime(100, 1, (1,), 1, (HopTime("small", 2, 2), HopTime("large", 3, 3)))
    untold = RequestTime(100, 1, (), 1, (HopTime("small", None, None),))
    one = row(4, [told, untold])
    assert one["hops"] == {"small": 2, "large": 1}
    assert (one["before_ms"], one["after_ms"]) == ({"small": 2, "large": 3}, {"small": 2, "large": 3})
    assert one["around_share"] == pytest.approx((5 + (4 + 4) + 6) / 200)


def test_where_no_engine_of_a_model_told_its_hops_count_like_the_others():
    told = RequestTime(100, 1, (1,), 1, (HopTime("small", None, None), HopTime("large", 3, 3)))
    assert row(1, [told])["around_share"] == pytest.approx((3 + 6 + 6) / 100)


def test_every_number_of_clients_has_problems_of_its_own():
    options = read_options(["--clients", "1,3", "--problems", "2,4"])
    first, second = problems(options)
    assert (len(first), len(second)) == (1 + 2, 3 + 4)
    assert len({one.text for one in first + second}) == 10


@pytest.mark.parametrize("wrong", [["--problems", "1,2,3"], ["--clients", "0"]])
def test_bad_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        read_options(wrong)
    assert wrong[0] in capsys.readouterr().err
