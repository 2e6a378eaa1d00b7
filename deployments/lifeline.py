"""Who dies with whom, so that nothing outlives the system it belongs to.

A replica's engine runs in a child process of its own. If the replica is killed outright nobody tells that
child, and it would keep its memory, its cores and its GPU. `hold` is a vLLM plugin (an entry point in
pyproject.toml), so it runs in every process vLLM starts, whoever starts it: each watches its parent and ends
when the parent does.

The rest is for the starter, which has to end everything below it, whatever has become of the processes in between.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing.connection import wait

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def hold() -> None:
    """Ends this process with the one that started it, if it was started by `multiprocessing`.

    A thread watches the parent process. PR_SET_PDEATHSIG would be simpler but fires when the parent's *thread* ends,
    and an engine may well be started from a pool thread that does not live as long as the replica.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    # Closed when the parent dies, but also when it forgets its `Process` object; a process descriptor is exact.
    closed = watched = parent.sentinel
    with suppress(AttributeError, OSError):
        watched = os.pidfd_open(parent.pid)
        if wait([closed], timeout=0):  # it died before that: the descriptor may be a stranger's of the same number
            watched = closed
    threading.Thread(target=_end_after, args=(watched,), name="lifeline", daemon=True).start()


def _end_after(watched: int) -> None:
    wait([watched])
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end_with(parent: int, sent: signal.Signals) -> None:
    """Has the kernel send this process a signal when the thread that started it ends, and checks that `parent` is
    still there to wait for."""
    _prctl(PR_SET_PDEATHSIG, sent)
    if os.getppid() != parent:
        os.kill(os.getpid(), sent)


def adopt_orphans() -> None:
    """Makes descendants whose parent dies children of this process instead of init's, so they stay in sight."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_descendants(patience_s: float = 10.0) -> list[str]:
    """Kills everything below this process, orphans included, and waits for it. Returns what would not go."""
    me = psutil.Process()
    until = time.monotonic() + patience_s
    while (left := me.children(recursive=True)) and time.monotonic() < until:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        bury(sparing=())
        time.sleep(0.02)
    return [f"{process.pid}" for process in left]


def bury(sparing: tuple[int, ...]) -> None:
    """Collects the exit codes of dead children except the spared ones, whose starter collects them itself."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid not in sparing and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")
