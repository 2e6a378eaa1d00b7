"""What is left when something is killed, or cannot start: nothing. These tests kill, so they run after the others."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time

import httpx
import psutil
import pytest
import ray
from asking import ask, problems, said
from system import System, at_work, back, start

from loadtest.command import PROFILE, free_port, variant

pytestmark = pytest.mark.last


def gone(pids: list[int], *, within_s: float) -> list[int]:
    """Those of `pids` that still run after `within_s` seconds."""
    until = time.monotonic() + within_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(("model", "victim"), [("small", "engine core"), ("large", "replica")])
async def test_a_request_survives_its_engine(
    system: System, client: httpx.AsyncClient, model: str, victim: str
) -> None:
    """Design rule 9, and no orphan."""
    question = problems(1, seed=31)[0].question
    undisturbed = said(await ask(client, question))
    asked = asyncio.create_task(ask(client, question))
    account = await at_work(system, model)
    replica, cores = account["pid"], account["engine_pids"]
    os.kill(cores[0] if victim == "engine core" else replica, signal.SIGKILL)
    assert gone([replica, *cores], within_s=5) == []
    assert said(await asked) == undisturbed
    await back(system, model, replica)
    assert said(await ask(client, question)) == undisturbed


def test_nothing_outlives_a_killed_starter(system: System) -> None:
    ray.shutdown()
    leaves_nothing(system, signal.SIGKILL)


def test_nothing_outlives_a_starter_that_is_asked_to_stop() -> None:
    # Not pytest's own folder: Ray puts sockets there, and their paths must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        leaves_nothing(start(TMPDIR=folder), signal.SIGINT)
        assert [left for left in os.listdir(folder) if not left.startswith("torchinductor_")] == []  # torch's cache


def test_a_machine_with_too_few_gpus_is_told_at_once() -> None:
    with variant(PROFILE, lambda args: args["large"].update(gpus=99)) as profile:
        command = [sys.executable, "-m", "deployments.cli", "run", str(profile), "--port", str(free_port())]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"glimprouter: {profile} needs 99 GPUs, of which this machine has ")


def leaves_nothing(running: System, sent: signal.Signals) -> None:
    assert running.starter is not None
    starter = psutil.Process(running.starter.pid)
    since, ours = starter.create_time(), [process.pid for process in starter.children(recursive=True)]
    assert len(ours) > 6
    running.stop(sent)
    assert gone(ours, within_s=20) == []
    left = psutil.process_iter(["cmdline", "create_time"])
    commands = [" ".join(one.info["cmdline"] or []) for one in left if one.info["create_time"] >= since]
    assert [c for c in commands if c.startswith(("ray::", "VLLM::")) or "raylet" in c or "gcs_server" in c] == []
