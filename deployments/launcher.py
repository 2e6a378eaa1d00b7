"""Starts the whole system on one machine, and ends all of it.

Two processes. The *supervisor* is what the user started: it checks what can be checked at once, then only waits,
passes on the wish to stop, and at the end kills whatever is left below it. The *starter* does the work: Ray, Serve,
the applications of the profile, one real question. Each outlives the other by no more than the clean-up: a killed
starter's children become the supervisor's (it adopts orphans), and a killed supervisor is a stop signal to the
starter, which adopts orphans too. Without the pair, Ray's agents stay for half a minute after a `kill -9`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from deployments import lifeline
from deployments.config import problem
from deployments.first_question import ask_both
from deployments.plan import Plan
from deployments.progress import Console, StartError, root_cause, wait_until_running
from router import tracing

ENVIRONMENT: dict[str, str] = {
    # Ray, Serve and OpenMP read these at import or at process start, so no config file can carry them: whatever
    # starts Ray (this file, the container images) has to set them first. What the user has set already wins.
    #
    # Two CPU engines on the same cores: a waiting OpenMP thread must sleep, not spin in the other engine's time.
    "OMP_WAIT_POLICY": "passive",
    # A replica's children (the engine core) end with the replica, whichever way it ends.
    "RAY_process_group_cleanup_enabled": "1",
    # Serve writes its log files anyway; a second copy of each line costs time on every request.
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Between proxy, router and engines: gRPC without a thread to switch to at either end costs half of what actor calls
    # do. User code is asynchronous, so it may share Serve's own event loop.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # Replicas are reached at their machine's own address, which no proxy for the world outside leads to.
    "grpc_proxy": "",
    # Each of a process's many threads would keep what it freed in a heap of its own, and replicas grow.
    "MALLOC_ARENA_MAX": "2",
    # The raylet and the GCS have an allocator of their own for which the same holds.
    "RAY_JEMALLOC_PROFILE": "raylet,gcs_server",
    "RAY_JEMALLOC_CONF": "narenas:1,tcache:false",
    # oneDNN compiles a product of matrices for each size of batch that it meets, and keeps so many. At its 1,024 an
    # engine on CPUs grows for hours, by hundreds of MiB, and is no faster.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
    # Ray would run the replicas behind everything else on the machine (nice 15), the senders of their requests too.
    "RAY_worker_niceness": "0",
    # Engines that start beside it can keep a small machine's cores so busy that the proxy would be given up.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
    # FlashInfer's sampler is compiled when an engine starts, which takes a CUDA toolkit beside the driver.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Nobody's prompts, models or hardware are reported anywhere.
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

STOP = signal.SIGUSR1  # from supervisor to starter; Ray answers SIGTERM with a stack trace while it starts
STOP_S = 12.0  # for an orderly shutdown; what is not gone by then is killed
HOPS_STORE_BYTES = 256 << 20  # hops are kilobytes, and a container's /dev/shm is often 64 MB


# The supervisor


def supervise(plan: Plan, parent: int | None = None) -> int:
    """Starts the system and waits for its end. Returns the exit status.

    parent: stop as well when this process, which started us, ends.
    """
    lifeline.adopt_orphans()
    if parent is not None:
        lifeline.end_with(parent, signal.SIGTERM)
    command = [sys.executable, "-m", "deployments.launcher"]
    # A process group of its own, or Ctrl-C would hit Ray's processes at the same time as us.
    environment = ENVIRONMENT | (tracing.SERVE_ENVIRONMENT if tracing.endpoint() else {}) | os.environ
    starter = subprocess.Popen(command, env=environment, process_group=0, stdin=subprocess.PIPE, text=True)
    assert starter.stdin is not None
    # Not as an argument: a plan may hold the database's password.
    with suppress(BrokenPipeError), starter.stdin as pipe:
        pipe.write(json.dumps(asdict(replace(plan, supervisor=os.getpid()))))
    asked = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        starter.send_signal(STOP if asked == 1 and signum != signal.SIGALRM else signal.SIGKILL)
        signal.alarm(int(STOP_S) + 3)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
            signal.signal(signum, stop)
    status = starter.wait()
    signal.alarm(0)
    if left := lifeline.end_descendants():
        print(f"glimprouter: could not end {', '.join(left)}", file=sys.stderr)
    if asked:
        return 0
    if status < 0:
        print(f"glimprouter: killed by {signal.Signals(-status).name}; everything was stopped", file=sys.stderr)
        return 1
    return status


# The starter


class Stop(BaseException):
    """The wish to stop, raised wherever the starter happens to be."""


def start(plan: Plan, logs: Path) -> NoReturn:
    """Brings the system up, says so, and stays until something stops it: `Stop` or `StartError`."""
    console = Console(plan.started)
    console.say(f"Starting {plan.profile}")
    if plan.notice:
        console.say(plan.notice)
    import ray
    from pydantic import ValidationError
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    for noisy in ("ray", "ray.serve"):
        logging.getLogger(noisy).setLevel(logging.INFO if plan.verbose else logging.ERROR)
    try:
        config = ServeDeploySchema.model_validate(plan.config)
    except ValidationError as error:
        raise StartError(f"{plan.profile}: {problem(error)}") from None
    # Replicas leave the sockets of their engines behind when they are killed: here they go with the logs.
    os.environ.setdefault("VLLM_RPC_BASE_PATH", str(logs))
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        log_to_driver=plan.verbose,
        logging_level=logging.INFO if plan.verbose else logging.ERROR,
        object_store_memory=HOPS_STORE_BYTES,
        _temp_dir=str(logs),
    )
    ours = tuple(child.pid for child in psutil.Process().children())
    listen_for_stop()  # Ray installs a handler of its own
    node = ray.nodes()[0]  # type: ignore[no-untyped-call]
    cpus, gpus = (node["Resources"].get(kind, 0) for kind in ("CPU", "GPU"))
    address = ray.get_runtime_context().gcs_address
    console.say(f"Ray is up at {address} ({cpus:g} CPUs, {gpus:g} GPUs); logs in {logs}/session_latest/logs")
    if round(plan.gpus, 4) > gpus:  # Ray counts ten-thousandths
        raise StartError(
            f"{plan.profile} needs {plan.gpus:g} GPUs, of which this machine has {gpus:g};"
            " replicas share one where their pools say how much of it they take (`gpus: 0.5`)"
        )
    client = serve_start(
        http_options=config.http_options.model_dump(),
        grpc_options=config.grpc_options.model_dump(),
        global_logging_config=config.logging_config,
        global_tracing_config=config.tracing_config,
        controller_options=config.controller_options,
        proxy_location=config.proxy_location,
    )
    console.say("Serve is up")
    client.deploy_apps(config)
    wait_until_running(console)
    console.say(ask_both(plan.url))
    print(f"Metrics on http://127.0.0.1:{node['MetricsExportPort']}/metrics")
    print(f"Serving on {plan.url}", flush=True)
    stay(console, ours)


def stay(console: Console, ours: tuple[int, ...]) -> NoReturn:
    """Watches until something ends it, and says when an application falls ill and recovers."""
    from ray import serve

    known: dict[str, str] = {}
    while True:
        lifeline.bury(sparing=ours)
        if ended := [pid for pid in ours if not alive(pid)]:
            raise StartError(f"a Ray process ended (pid {ended[0]}); its log tells why")
        for name, application in serve.status().applications.items():
            status = str(application.status.value)
            if status != known.get(name, "RUNNING"):
                reason = "" if status == "RUNNING" else f": {root_cause(application.message)}"
                console.say(f"{name} is {status.lower()}{reason}")
            known[name] = status
        time.sleep(2)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


stopping = threading.Event()
"""Set with every `Stop`: Ray's compiled code may turn an exception raised inside it into another."""


def listen_for_stop() -> None:
    """Raise `Stop` in the main thread at the next signal to stop."""

    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        stopping.set()
        raise Stop

    signal.signal(STOP, stop)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


ending = threading.Lock()


def end(status: int, logs: Path) -> NoReturn:
    """Ends this process and all below it. A second thread that comes here waits for that."""
    with ending:
        lifeline.end_descendants()
        if status == 0:
            shutil.rmtree(logs, ignore_errors=True)
        # Nothing is left that an exit handler could clean up, and Ray's wait for processes that are gone.
        os._exit(status)


def main() -> NoReturn:
    """The starter: reads its plan from standard input."""
    plan = Plan(**json.load(sys.stdin))
    listen_for_stop()
    status = 1
    # Short, because Ray puts sockets into it and a socket's path has at most 107 characters.
    logs = Path(tempfile.mkdtemp(prefix="glimprouter-", dir=None if len(tempfile.gettempdir()) < 24 else "/tmp"))
    try:
        lifeline.adopt_orphans()
        lifeline.end_with(plan.supervisor, STOP)
        start(plan, logs)
    except (Stop, SystemExit):  # Ray's own handler turns SIGTERM into SystemExit while it starts
        status = 0
        print("Stopping", flush=True)
    except StartError as error:
        complain(f"{error}", logs)
    except Exception as error:
        if stopping.is_set():
            status = 0
        else:
            if plan.verbose:
                traceback.print_exc()
            complain(root_cause(f"{type(error).__name__}: {error}"), logs)
    finally:
        for signum in (STOP, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        threading.Timer(STOP_S, end, (status, logs)).start()
        try:
            shut_down(quietly=not plan.verbose)
        finally:
            end(status, logs)


def complain(line: str, logs: Path) -> None:
    """Say in one line why nothing runs, and where the logs are."""
    print(f"glimprouter: {line}\n  logs: {logs}/session_latest/logs", file=sys.stderr, flush=True)


def shut_down(quietly: bool) -> None:
    """End Serve and Ray in order, if they were begun."""
    if "ray" not in sys.modules:
        return
    if quietly:  # Ray reports every actor it ends on request as a failure
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
    import ray

    if ray.is_initialized():
        from ray import serve

        try:
            serve.shutdown()  # type: ignore[no-untyped-call]
        finally:
            ray.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
