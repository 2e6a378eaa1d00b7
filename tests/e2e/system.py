"""Starting a real system, and looking into it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.attaching import attach

ROOT = Path(__file__).resolve().parents[2]
START_S = 300


@dataclass
class System:
    """A running system, and the process that the user started."""

    url: str
    starter: subprocess.Popen[str] | None
    cluster: str | None = None
    """Ray's address (host:port); without it `RAY_ADDRESS`' or the only one on this machine is meant."""

    def attach(self) -> None:
        import ray

        if not ray.is_initialized():
            attach(self.cluster)

    def handle(self, model: str) -> Any:
        from ray import serve

        self.attach()
        return serve.get_deployment_handle(model, "glimpse")

    @property
    def metrics_port(self) -> int:
        """Where Prometheus finds Ray's, Serve's, the router's and the engines' metrics."""
        import ray

        self.attach()
        return int(ray.nodes()[0]["MetricsExportPort"])

    async def account(self, model: str) -> dict[str, Any]:
        """The engine's own counts (one replica a pool)."""
        return await self.handle(model).account.remote()

    async def generated(self) -> dict[str, int]:
        return {model: (await self.account(model))["generated_tokens"] for model in ("small", "large")}

    def stop(self, sent: signal.Signals = signal.SIGINT) -> None:
        assert self.starter is not None
        self.starter.send_signal(sent)
        self.starter.wait(60)


def start(profile: str = "deployments/profiles/pocket.yaml", **environment: str) -> System:
    """What `make run` does after it has installed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Tests that run in the background ignore Ctrl-C, and what they start would inherit that. `preexec_fn` would fork,
    # in which the child of a process that serves gRPC, as this one does, can hang.
    command = ["env", "--default-signal=INT"]
    command += [sys.executable, "-m", "deployments.cli", "run", profile, "--port", str(port), "--with-parent"]
    starter = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert starter.stdout is not None
        for line in starter.stdout:
            lines.append(line)
            if line.startswith("Serving on "):
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    ready.wait(START_S)
    told = "".join(lines)
    if "Serving on " not in told:
        starter.kill()
        pytest.fail(f"the system did not start:\n{told}")
    cluster = re.search(r"Ray is up at (\S+)", told)
    assert cluster is not None, told
    return System(f"http://127.0.0.1:{port}", starter, cluster[1])


async def back(system: System, model: str, old_pid: int) -> None:
    """Returns once a killed replica has a successor."""
    for _ in range(240):
        try:
            if (await asyncio.wait_for(system.account(model), 5))["pid"] != old_pid:
                return
        except Exception:
            pass
        await asyncio.sleep(0.5)
    pytest.fail(f"the {model} replica did not come back")


async def at_work(system: System, model: str) -> dict[str, Any]:
    """A replica's account as soon as it has something to do."""
    for _ in range(4000):
        if (account := await system.account(model))["running_requests"]:
            return account
        await asyncio.sleep(0.005)
    pytest.fail(f"the {model} pool got nothing to do")


async def settled(system: System, *, within_s: float) -> dict[str, int]:
    """Requests still running in each engine once none is, or after `within_s` seconds."""
    until = time.monotonic() + within_s
    while True:
        running = {model: (await system.account(model))["running_requests"] for model in ("small", "large")}
        if not any(running.values()) or time.monotonic() > until:
            return running
        await asyncio.sleep(0.05)
