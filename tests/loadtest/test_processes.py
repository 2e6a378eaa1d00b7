import os
import subprocess

from loadtest.processes import CpuTime


def test_a_process_that_has_just_ended_has_no_name_and_no_time() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        now = CpuTime.now()
        assert process.pid not in now.seconds
        assert set(now.since(now)) == set(now.kinds.values())
