"""This process as part of a running system's Ray cluster."""

from __future__ import annotations

import logging
import os
import socket

from deployments.progress import StartError

ANSWER_S = 10.0


def attach(address: str | None = None) -> None:
    """Joins the cluster at `address` (host:port), or `RAY_ADDRESS`', or else the only one on this machine.

    Raises `StartError` where there is none, or several of which Ray would take any.
    """
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import find_gcs_addresses

    address = address or os.environ.get("RAY_ADDRESS")
    if address == "auto":  # Ray's word for whichever runs here
        address = None
    if address and not _answers(address):
        raise StartError(f"no system is running at {address}")
    if not address and len(found := sorted(find_gcs_addresses())) > 1:
        raise StartError(f"RAY_ADDRESS has to say which of the systems on this machine it is: {' or '.join(found)}")
    # Where it is told the address, Ray does not look for the cluster's token by itself.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(address=address or "auto", namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        raise StartError("no system is running on this machine; `glimprouter run` starts one") from None


def _answers(address: str) -> bool:
    """Whether anybody does, as Ray would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
    except (OSError, OverflowError, ValueError):
        return False
    return True
