"""How much CPU time forward passes take, told by the processes that compute them (loadtest/timed_worker.py).

Each of them keeps the seconds it has spent in the model in a file named by its process id, in the folder that the
environment variable FORWARD_TIMES names.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "FORWARD_TIMES"
SECONDS = struct.Struct("d")


def kept(folder: Path, pid: int) -> mmap.mmap:
    """The file of a process, at 0 seconds."""
    path = folder / str(pid)
    path.write_bytes(SECONDS.pack(0.0))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), SECONDS.size)


def timed(work: Callable[..., Any], seconds: mmap.mmap) -> Callable[..., Any]:
    """The same work, whose CPU time is added to `seconds`."""

    def worked(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return work(*args, **kwargs)
        finally:
            (before,) = SECONDS.unpack_from(seconds)
            SECONDS.pack_into(seconds, 0, before + time.thread_time() - began)

    return worked


def forward_s(folder: Path) -> dict[int, float]:
    """Seconds by process id."""
    return {int(path.name): SECONDS.unpack(path.read_bytes())[0] for path in folder.iterdir()}
