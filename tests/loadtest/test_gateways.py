from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import pytest

from loadtest.command import MeasuringError, free_port
from loadtest.engines import server
from loadtest.gateways import read_options, rows, shown
from loadtest.systems import Solved
from loadtest.versus import Round


def a_round(latency_s: float, *, right: bool = True) -> Round:
    return Round((Solved(latency_s, latency_s / 2, 100, 0, 1, "4"),), (right,), latency_s, {"client": 0.1})


def test_each_is_compared_with_vllm_serve_that_replied_the_same_way() -> None:
    taken = {
        ("vllm serve", 1, False): [a_round(1.0), a_round(2.0)],
        ("vllm serve", 1, True): [a_round(2.0), a_round(2.0)],
        ("ours", 1, False): [a_round(2.0), a_round(4.0)],
        ("ours", 1, True): [a_round(1.0), a_round(1.0, right=False)],
    }
    compared = {
        (cells[1].strip(), cells[2].strip()): [cell.strip() for cell in cells[-4:-1]]
        for cells in (line.split("|") for line in shown(rows(taken)).splitlines()[3:])
    }
    assert compared["vllm serve", "whole"] == ["100.0%", "1.00x", "1.00x"]
    assert compared["ours", "whole"] == ["100.0%", "0.50x", "2.00x"]
    assert compared["ours", "streamed"] == ["50.0%", "2.00x", "0.50x"]


def test_without_vllm_serve_there_is_nothing_to_compare_with() -> None:
    assert "x |" not in shown(rows({("ours", 4, True): [a_round(1.0)]}))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gateways", "nginx"], "'nginx' is none of vllm serve, litellm"),
        (["--litellm", "/no/litellm"], "/no/litellm is no command"),
        (["--url", "http://127.0.0.1:1", "--gateways", "ours"], "--url"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read_options(arguments)
    assert said in capsys.readouterr().err


def test_what_is_left_out_need_not_be_installed() -> None:
    assert read_options(["--gateways", "vllm serve,ours", "--litellm", "/no/litellm"]).gateways == [
        "vllm serve",
        "ours",
    ]


def test_a_server_lives_as_long_as_the_block(tmp_path: Path) -> None:
    port = free_port()
    asked = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with server("a server", asked, os.environ, port, "/") as url:
        assert httpx.get(url).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([sys.executable, "-c", "raise SystemExit('no such model')"], "a server ended while it started: no such model"),
        (["/no/such/command"], "/no/such/command cannot be started: No such file"),
    ],
)
def test_a_server_that_does_not_start_is_one_line(asked: list[str], said: str) -> None:
    with pytest.raises(MeasuringError, match=said), server("a server", asked, os.environ, free_port()):
        pytest.fail("it did not start")
