from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import entry_points

import psutil
import pytest

from deployments import lifeline

PARENT = """
import multiprocessing, signal, threading, time
from deployments import lifeline

def child(held, said):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if held:
        lifeline.hold()
    said.set()
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    said = context.Event()
    process = context.Process(target=child, args=(HELD, said))
    # As in a replica that starts its engine in a pool: the thread is gone long before the process.
    starter = threading.Thread(target=process.start)
    starter.start()
    starter.join()
    said.wait()
    print(process.pid, flush=True)
    time.sleep(60)
"""

ORPHANS = """
import os, subprocess, sys, time
from deployments import lifeline
lifeline.adopt_orphans()
quick = "from subprocess import *; print(Popen([{python!r}, '-c', {sleep!r}], start_new_session=1, stdout=DEVNULL).pid)"
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
quick = quick.format(python=sys.executable, sleep=sleep)
print(subprocess.check_output([sys.executable, "-c", quick], text=True).strip(), flush=True)
print(lifeline.end_descendants(), flush=True)
"""


def gone(pid: int, within: float = 2.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("held", [True, False])
def test_a_held_child_dies_with_its_parent_and_not_with_the_thread_that_started_it(held: bool, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("HELD", str(held)))
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    assert psutil.pid_exists(child)
    parent.kill()
    parent.wait()
    try:
        assert gone(child, within=3 if held else 0.5) is held
    finally:
        if psutil.pid_exists(child):
            psutil.Process(child).kill()


def test_holding_does_nothing_in_a_process_nobody_spawned() -> None:
    before = psutil.Process().num_threads()
    lifeline.hold()
    assert psutil.Process().num_threads() == before


def test_vllm_finds_the_lifeline() -> None:
    (found,) = (one for one in entry_points(group="vllm.general_plugins") if one.name == "glimprouter_lifeline")
    assert found.load() is lifeline.hold


def test_orphans_that_ignore_sigterm_in_a_session_of_their_own_are_ended_too() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, timeout=30, check=True)
    pid, left = done.stdout.split()
    assert left == "[]"
    assert gone(int(pid))


def test_a_process_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "import signal; from deployments import lifeline; lifeline.end_with(1, signal.SIGTERM); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == -15
    assert "alive" not in done.stdout
