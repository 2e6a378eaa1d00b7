from loadtest.nodes import Asked, rows, shown
from loadtest.streamed import Streamed


def asked(at: float, *, silence_s: float = 0.1, finish: str | None = "stop", resumed: int = 0) -> Asked:
    told = Streamed("", "", finish, resumed, silence_s=silence_s)
    return Asked(at, at + 2, told, differs=False)


def test_requests_are_told_apart_by_when_they_were_asked() -> None:
    told = [asked(5), asked(9.5, silence_s=3, resumed=1), asked(12, silence_s=2), asked(40), asked(41, finish=None)]
    found = rows(told, died=10, elsewhere=30, patience_s=1.0)
    assert [(row.requests, row.waited, row.failed, row.resumed_hops) for row in found] == [
        (2, 1, 0, 1),
        (1, 1, 0, 0),
        (2, 0, 1, 0),
    ]
    assert "The replicas were elsewhere 20 s" in shown(found, 20.0)


def test_those_who_waited_and_those_who_failed_are_named() -> None:
    assert asked(9.5, silence_s=3).story(died=10) == "asked -0.5 s from the death, ended +1.5 s: waited 3.0 s"
    assert asked(12, finish=None).story(died=10) == "asked +2.0 s from the death, ended +4.0 s: failed (no end)"
