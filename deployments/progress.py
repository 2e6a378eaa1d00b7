"""What the user sees while a system starts, and the one line that says why it did not."""

from __future__ import annotations

import re
import time
from textwrap import shorten

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
                failed = (one for one in application.deployments.values() if "fail" in one.message.lower())
                message = next((one.message for one in failed), application.message)
                raise StartError(f"{name} did not start: {root_cause(message)}")
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


def root_cause(message: str) -> str:
    """The line of a traceback that says what happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Refusal)\b.*: ", line)]
    return errors[-1] if errors else (lines[0] if lines else "no reason given")
