"""CPU time of everything below this process, by what it is there for."""

from __future__ import annotations

import os
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
                    times = process.cpu_times()
                    seconds[process.pid] = times.user + times.system
                    kinds[process.pid] = kind(" ".join(process.cmdline()), own=process.pid == os.getpid())
            except psutil.NoSuchProcess:
                continue
        return cls(seconds, kinds)

    def since(self, earlier: CpuTime) -> dict[str, float]:
        """Seconds of each kind from `earlier` to this one; a process that ended in between is not seen."""
        spent: dict[str, float] = {}
        for pid, seconds in self.seconds.items():
            kind = self.kinds[pid]
            spent[kind] = spent.get(kind, 0.0) + seconds - earlier.seconds.get(pid, 0.0)
        return spent


def kind(command: str, *, own: bool = False) -> str:
    """What a process is there for, read off its command line."""
    if own:
        return "client"
    for sign, name in KINDS:
        if sign in command:
            # "ray::ServeReplica:glimpse:small" says which deployment it is a replica of.
            return name + re.split(r"\W", command.partition(sign)[2])[1] if name.endswith(" ") else name
    return "other"
