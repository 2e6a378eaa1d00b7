"""What the user sees while a system starts, and the one line that says why it did not."""

from __future__ import annotations

import re
import time
from itertools import takewhile
from textwrap import shorten
from typing import Any

START_S = 3600.0  # a 32B model from a slow disk or the hub takes its time; progress is shown all along


class StartError(Exception):
    """One line for the user: what is wrong, and what to do about it."""


class Console:
    """Progress lines with the seconds since the start."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.last = time.monotonic()

    def say(self, line: str) -> None:
        self.last = time.monotonic()
        print(f"{time.time() - self.started:6.1f} s  {line}", flush=True)

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.last


def wait_until_running(console: Console) -> None:
    """Returns once every application is running, and shows how they get there. Raises `StartError` if one fails."""
    from ray import serve

    until = time.monotonic() + START_S
    told: dict[str, str] = {}
    while True:
        applications = serve.status().applications
        waiting: list[str] = []
        for name, application in applications.items():
            if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise StartError(f"{name} did not start: {failure(application)}")
            if not application.deployments:
                waiting.append(f"{name} being built")
            for deployment, overview in application.deployments.items():
                state = "ready" if overview.status == "HEALTHY" else "starting"
                if overview.message and state != "ready":
                    state = f"starting: {shorten(root_cause(overview.message), 180, placeholder=' ...')}"
                if told.get(deployment) != state:
                    console.say(f"{deployment} {state}")
                    told[deployment] = state
                if state != "ready":
                    waiting.append(deployment)
        if applications and all(one.status == "RUNNING" for one in applications.values()):
            return
        if time.monotonic() > until:
            raise StartError(f"not up after {START_S:.0f} s; still waiting for {', '.join(waiting)}")
        if console.silent_s > 10:
            console.say(f"... {', '.join(waiting) or 'nearly there'}")
        time.sleep(0.25)


def failure(application: Any) -> str:
    """Why an application (Serve's `ApplicationStatusOverview`) does not run."""
    failed = (one.message for one in application.deployments.values() if "fail" in one.message.lower())
    return root_cause(next(failed, application.message))


def root_cause(message: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [n for n, line in enumerate(lines) if re.match(r"(\w+\.)*\w*(Error|Exception|Refusal)\b.*: ", line)]
    if not errors:
        return lines[0] if lines else "no reason given"
    said = lines[errors[-1]]
    if "validation error" not in said:
        return said
    # pydantic says in the lines below what is wrong: the field, where it is one, and the reason.
    below = takewhile(lambda line: not line.startswith("For further information"), lines[errors[-1] + 1 :])
    reasons = [line.partition(" [type=")[0].removeprefix("Value error, ") for line in below]
    return f"{said.rpartition(' for ')[2]}: {': '.join(reasons)}" if reasons else said
