"""Machines on one machine: network namespaces with addresses of their own, joined by a bridge (Linux, root)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from loadtest.command import MeasuringError

BRIDGE = "glimpse0"
NETWORK = "10.99.0"


@dataclass(frozen=True, slots=True)
class Machine:
    """A network namespace. Processes, files and clock are the host's."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """The command line that runs `command` there."""
        return ["ip", "netns", "exec", self.name, *command]

    def processes(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> int:
        """Ends all that runs there, at once and without a word. Returns how many processes that were."""
        ended: set[int] = set()
        while left := [pid for pid in self.processes() if pid not in ended]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended |= set(left)
        return len(ended)


@contextmanager
def machines(count: int) -> Iterator[tuple[str, Sequence[Machine]]]:
    """The host's own address on the bridge, and so many machines beside it; all gone after the block."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise MeasuringError("network namespaces need root and `ip` (Debian package iproute2)")
    made = [Machine(f"glimpse-{number}", f"{NETWORK}.{number + 1}") for number in range(1, count + 1)]
    _remove(made)
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for machine in made:
            _plug_in(machine)
        yield f"{NETWORK}.1", made
    finally:
        for machine in made:
            with suppress(MeasuringError):
                machine.kill()
        _remove(made)


def _plug_in(machine: Machine) -> None:
    cable = _cable(machine.name)
    _ip("netns", "add", machine.name)
    _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
    _ip("link", "set", cable, "master", BRIDGE, "up")
    inside = ("-n", machine.name)
    _ip(*inside, "address", "add", f"{machine.address}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "route", "add", "default", "via", f"{NETWORK}.1")


def _remove(made: Sequence[Machine]) -> None:
    for machine in made:
        with suppress(MeasuringError):
            _ip("netns", "delete", machine.name)
    with suppress(MeasuringError):
        _ip("link", "delete", BRIDGE)


def _cable(name: str) -> str:
    return f"{name}-cable"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise MeasuringError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
