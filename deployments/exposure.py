"""What a server lets in: nobody without a key, unless it listens on this machine only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from deployments.config import AccessConfig
from router.tenancy.settings import DATABASE_URL, loopback

KEYS = f"make a key with `glimprouter keys create` and set {DATABASE_URL}, or listen on 127.0.0.1"
DIRECT_INGRESS = ("RAY_SERVE_ENABLE_DIRECT_INGRESS", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")


class Exposed(Exception):
    """One line: what would be open to whom, and what to do about it."""


def check(access: AccessConfig, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str | None:
    """Refuses what would let strangers in. Returns a line to tell at the start, if there is one. Raises `Exposed`.

    config: the Serve config file's content.
    """
    if (config.get("grpc_options") or {}).get("grpc_servicer_functions"):
        raise Exposed("grpc_options: Serve's gRPC port listens everywhere and asks for no key; leave it out")
    host = str((config.get("http_options") or {}).get("host", "127.0.0.1"))
    if url := access.database or environ.get(DATABASE_URL):
        _check_keys(url, host)
        return None
    if access.behind_gateway:
        return "No keys: whatever is in front of this server has to know its callers"
    if not loopback(host):
        raise Exposed(f"without keys, anyone could use a server on {host}: {KEYS}")
    if direct := next((name for name in DIRECT_INGRESS if environ.get(name) == "1"), None):
        raise Exposed(f"{direct}=1 opens ports beyond 127.0.0.1, and there are no keys: {KEYS}")
    return f"No keys: anyone on this machine may ask, so it listens on {host} only"


def _check_keys(url: str, host: str) -> None:
    from router.tenancy.database import DatabaseError, connect, upgrade
    from router.tenancy.directory import Directory

    try:
        engine = connect(url)
        upgrade(engine)
        any_key = Directory(engine).any_key()
        engine.dispose()
    except DatabaseError as error:
        raise Exposed(str(error)) from None
    if not any_key and not loopback(host):
        raise Exposed(f"the database has no key that works, so nobody could use a server on {host}: {KEYS}")
