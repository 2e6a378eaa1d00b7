"""A Ray cluster of several nodes on one machine: a head beside this process, engine nodes in network namespaces."""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deployments import lifeline
from deployments.first_question import ask_both
from deployments.launcher import ENVIRONMENT
from deployments.progress import Console, StartError, wait_until_running
from loadtest.command import MeasuringError
from loadtest.namespaces import Machine, machines
from router.request import MODELS

GCS_PORT, HTTP_PORT = 6399, 8199
STORE_BYTES = 100 << 20


@contextmanager
def cluster(profile: Path, count: int) -> Iterator[tuple[str, Sequence[Machine]]]:
    """The profile, with `count` replicas a pool, served by a head and so many engine nodes. The URL, and the nodes.

    Serve's controller, proxy and router are on the head. An engine node has room for all replicas, which Serve spreads
    over the nodes.
    """
    # Before Ray is imported here. Who is on the bridge needs the token to join.
    own = ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ |= {name: value for name, value in own.items() if name not in os.environ}
    lifeline.adopt_orphans()
    with (
        # Short, because Ray puts sockets into it and a socket's path has at most 107 characters.
        tempfile.TemporaryDirectory(prefix="glimpse-", dir="/tmp", ignore_cleanup_errors=True) as logs,
        machines(count) as (host, nodes),
    ):
        address, room = f"{host}:{GCS_PORT}", {f"{pool}_pool": count for pool in MODELS}
        try:
            head = ("--head", f"--port={GCS_PORT}", "--include-dashboard=false", f"--temp-dir={logs}")
            start([], host, {"router_pool": 1}, *head)
            for node in nodes:
                start(node.command(), node.address, room, f"--address={address}")
            serve(address, host, profile, count)
            yield f"http://{host}:{HTTP_PORT}", nodes
        finally:
            import ray

            ray.shutdown()  # type: ignore[no-untyped-call]
            lifeline.end_descendants()


def start(inside: Sequence[str], address: str, resources: dict[str, int], *arguments: str) -> None:
    """Starts a raylet of this address, and what else belongs to a node."""
    command = [*inside, str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=2"]
    command += ["--disable-usage-stats", "--dashboard-agent-listen-port=0"]
    command += [
        f"--object-store-memory={STORE_BYTES}",
        f"--node-ip-address={address}",
        f"--resources={json.dumps(resources)}",
    ]
    # A file: what it leaves running would hold a pipe open.
    with tempfile.TemporaryFile("w+") as out:
        if subprocess.run([*command, *arguments], stdout=out, stderr=out, process_group=0).returncode != 0:
            out.seek(0)
            raise MeasuringError(f"the node {address} did not start: {' '.join(out.read().split())[-400:]}")


def spread_out(config: dict[str, Any], host: str, count: int) -> dict[str, Any]:
    """A profile's text as data, changed so that each deployment asks for what its nodes offer."""
    application, *others = config["applications"]
    args = dict(application["args"])
    for pool in MODELS:
        args[pool] = args[pool] | {"replicas": count, "cpus": 0.1, "resources": {f"{pool}_pool": 1}}
    args["router"] = args.get("router", {}) | {"cpus": 0.1, "resources": {"router_pool": 1}}
    # The head's address is one of this machine's namespaces, which nobody else can reach.
    args["access"] = args.get("access", {}) | {"behind_gateway": True}
    return config | {
        "applications": [application | {"args": args}, *others],
        "http_options": {"host": host, "port": HTTP_PORT},
        "proxy_location": "HeadOnly",
    }


def serve(address: str, host: str, profile: Path, count: int) -> None:
    """Starts Serve with the profile on the cluster and waits until it answers."""
    import ray
    from ray.serve._private.api import serve_start
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(spread_out(yaml.safe_load(profile.read_text()), host, count))
    ray.init(address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR, _node_ip_address=host)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    client = serve_start(http_options=config.http_options.model_dump(), proxy_location=config.proxy_location)
    client.deploy_apps(config)
    console = Console(time.time())
    try:
        wait_until_running(console)
        console.say(ask_both(f"http://{host}:{HTTP_PORT}"))
    except StartError as error:
        raise MeasuringError(str(error)) from None
