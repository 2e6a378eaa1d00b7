from __future__ import annotations

import os
from pathlib import Path

import pytest

from loadtest.forward import FOLDER, forward_s, kept, timed
from loadtest.overhead import FORWARD, Spent
from loadtest.processes import CpuTime


def busy(rounds: int) -> int:
    return sum(i * i for i in range(rounds))


def test_what_a_forward_pass_takes_is_kept_by_process(tmp_path: Path) -> None:
    work = timed(busy, kept(tmp_path, 41))
    assert forward_s(tmp_path) == {41: 0.0}
    assert work(300_000) == busy(300_000)
    once = forward_s(tmp_path)[41]
    work(300_000)
    assert forward_s(tmp_path)[41] > once > 0.0


def test_a_forward_pass_that_fails_counts_too(tmp_path: Path) -> None:
    def fails(rounds: int) -> None:
        busy(rounds)
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        timed(fails, kept(tmp_path, 41))(300_000)
    assert forward_s(tmp_path)[41] > 0.0


def test_forward_passes_stand_apart_from_their_process() -> None:
    before = Spent(CpuTime({1: 10.0, 2: 5.0}, {1: "engine core", 2: "proxy"}), {1: 4.0})
    after = Spent(CpuTime({1: 16.0, 2: 6.0}, {1: "engine core", 2: "proxy"}), {1: 8.0, 99: 3.0})
    assert after.since(before) == {"engine core": 2.0, FORWARD: 4.0, "proxy": 1.0}


def test_nothing_is_timed_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    assert Spent.now().forward_s == {}
    assert os.getpid() in Spent.now().cpu.kinds
