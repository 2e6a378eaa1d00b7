"""CPU time and memory of everything below this process, by what it is there for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import psutil

KINDS = (
    ("ServeReplica:", "replica "),
    ("ProxyActor", "proxy"),
    ("ServeController", "controller"),
    ("VLLM::EngineCore", "engine core"),
    ("VLLM::Worker", "engine worker"),
    ("vllm.entrypoints", "vllm server"),
    ("deployments.cli", "supervisor"),
    ("deployments.launcher", "starter"),
    ("raylet", "ray"),
    ("gcs_server", "ray"),
    ("ray", "ray"),
)


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of CPU that each process had used up, by process id, and what each process is."""

    seconds: dict[int, float] = field(repr=False)
    kinds: dict[int, str] = field(repr=False)

    @classmethod
    def now(cls) -> CpuTime:
        """Of this process and all its descendants."""
        me = psutil.Process()
        seconds: dict[int, float] = {}
        kinds: dict[int, str] = {}
        for process in [me, *me.children(recursive=True)]:
            try:
                with process.oneshot():
                    command, times = " ".join(process.cmdline()), process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            kinds[process.pid] = kind(command, own=process.pid == me.pid)
            seconds[process.pid] = times.user + times.system
        return cls(seconds, kinds)

    def since(self, earlier: CpuTime) -> dict[str, float]:
        """Seconds of each kind from `earlier` to this one; a process that ended in between is not seen."""
        spent: dict[str, float] = {}
        for pid, seconds in self.seconds.items():
            kind = self.kinds[pid]
            spent[kind] = spent.get(kind, 0.0) + seconds - earlier.seconds.get(pid, 0.0)
        return spent


def held_mib() -> dict[str, float]:
    """Of each process below this one that is part of a system, the MiB that would be free if it ended (its unique
    set). Two of a kind stand with their process ids."""
    held: dict[str, list[tuple[int, float]]] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            name = kind(" ".join(process.cmdline()))
            if name != "other":
                name = process.name() if name == "ray" else name
                held.setdefault(name, []).append((process.pid, process.memory_full_info().uss / 2**20))
        except psutil.Error:
            continue
    return {
        name if len(same) == 1 else f"{name} {pid}": mib for name, same in sorted(held.items()) for pid, mib in same
    }


def kind(command: str, *, own: bool = False) -> str:
    """What a process is there for, read off its command line."""
    if own:
        return "client"
    for sign, name in KINDS:
        if sign in command:
            # "ray::ServeReplica:glimpse:small" says which deployment it is a replica of.
            return name + re.split(r"\W", command.partition(sign)[2])[1] if name.endswith(" ") else name
    return "other"
