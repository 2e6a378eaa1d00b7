"""Plain `vllm serve` processes, as a user would start them who has no router: the pools of a profile, one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.config import AppConfig, ConfigError, PoolConfig
from deployments.launcher import ENVIRONMENT
from loadtest.command import MeasuringError, free_port
from router.request import Model

START_S = 1800.0
STOP_S = 20.0
MEMORY = {"VLLM_CPU_KVCACHE_SPACE"}


def settings_of(profile: Path) -> AppConfig:
    """What a profile says of the application that this project deploys."""
    try:
        config: dict[str, Any] = yaml.safe_load(profile.read_text())
        args = next(one["args"] for one in config["applications"] if one["import_path"].startswith("deployments.app:"))
        return AppConfig.read(args)
    except ConfigError as error:
        raise MeasuringError(f"{profile}: {error}") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration):
        raise MeasuringError(f"{profile} is no profile; `glimprouter profiles` lists those that come along") from None


def engine_arguments(pool: PoolConfig) -> dict[str, Any]:
    """vLLM's engine arguments, by name, that a pool gives its model."""
    given: dict[str, Any] = {"dtype": pool.dtype, "tensor_parallel_size": pool.tensor_parallel} | pool.engine
    if pool.max_model_len:
        given["max_model_len"] = pool.max_model_len
    if pool.revision:
        given["revision"] = pool.revision
    return given


def drafting(pool: PoolConfig) -> PoolConfig:
    """The pool for a server that knows nothing of `draft`: what drafts is among its engine arguments."""
    if pool.draft is None:
        return pool
    return pool.model_copy(update={"engine": pool.engine | {"speculative_config": pool.draft.speculative_config}})


def command(model: Model, pool: PoolConfig, port: int) -> list[str]:
    """The command line that serves a pool's model with the engine arguments the pool gives it."""
    flags: list[str] = []
    for name, value in engine_arguments(pool).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return [
        # What `vllm serve` runs; the command itself asks for a package named vllm, which the CPU build is not.
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", pool.path),
        *("--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)),
        # Else the model's own sampling defaults would be mixed into greedy requests.
        *("--generation-config", "vllm"),
        # A line for each call costs time that is not the protocol's.
        *("--disable-uvicorn-access-log", "--enable-prefix-caching"),
        *flags,
    ]


def environment_of(pool: PoolConfig) -> dict[str, str]:
    """What an engine of the pool would find in a replica, around it what this process has."""
    return ENVIRONMENT | own_environment(pool)


def own_environment(pool: PoolConfig) -> dict[str, str]:
    """What this process has, and what the pool's own settings add to it."""
    return os.environ | {"VLLM_LOGGING_LEVEL": "WARNING"} | pool.env


def stock(pool: PoolConfig) -> PoolConfig:
    """The pool for someone who sets nothing but the model: vLLM's own engine settings, and threads as it binds them.
    Only how much memory it may take on a CPU is kept, or two would not fit beside each other."""
    return pool.model_copy(update={"engine": {}, "env": {name: pool.env[name] for name in MEMORY & pool.env.keys()}})


@contextmanager
def own_engine(model: Model, pool: PoolConfig) -> Iterator[Any]:
    """The pool's vLLM engine (an AsyncLLM) in this process, set as in a replica."""
    from vllm.v1.engine.async_llm import AsyncLLM

    from deployments.engine_args import engine_args

    os.environ |= environment_of(pool)
    core = AsyncLLM.from_engine_args(engine_args(pool, model))
    try:
        yield core
    finally:
        core.shutdown()


@contextmanager
def served(
    pools: Mapping[Model, PoolConfig], environment: Callable[[PoolConfig], dict[str, str]] = environment_of
) -> Iterator[dict[Model, str]]:
    """A `vllm serve` for each pool, by default with the environment its replicas would have; their URLs."""
    with ExitStack() as stack:
        # One after the other: two that compile at once take longer than two in turn.
        yield {model: stack.enter_context(_engine(model, pool, environment(pool))) for model, pool in pools.items()}


@contextmanager
def _engine(model: Model, pool: PoolConfig, environment: Mapping[str, str]) -> Iterator[str]:
    port = free_port()
    with server(f"vllm serve for the {model} model", command(model, pool, port), environment, port) as url:
        yield url


@contextmanager
def server(
    name: str, command: Sequence[str], environment: Mapping[str, str], port: int, ready: str = "/health"
) -> Iterator[str]:
    """The URL of a process that serves HTTP on the port, from when it answers `ready` with 200 to the block's end."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        try:
            server = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise MeasuringError(f"{command[0]} cannot be started: {error.strerror}") from None
        try:
            _wait(name, server, url + ready, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(name: str, server: subprocess.Popen[bytes], ready: str, log: Any) -> None:
    began = time.monotonic()
    print(f"        Starting {name}", file=sys.stderr)
    while time.monotonic() - began < START_S:
        if server.poll() is not None:
            log.seek(0)
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
            raise MeasuringError(f"{name} ended while it started: {lines[-1] if lines else 'it said nothing'}")
        try:
            if httpx.get(ready, timeout=2).status_code == 200:
                print(f"{time.monotonic() - began:6.1f} s  {name} answers", file=sys.stderr)
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.25)
    raise MeasuringError(f"{name} was not up after {START_S:.0f} s")
