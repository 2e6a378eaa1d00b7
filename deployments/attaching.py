"""This process as part of a running system's Ray cluster."""

from __future__ import annotations

import logging
import os

from deployments.progress import StartError


def attach(address: str | None = None) -> None:
    """Joins the cluster at `address` (host:port), or `RAY_ADDRESS`', or else the only one on this machine.

    Raises `StartError` where there is none, or several of which Ray would take any.
    """
    import ray
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import find_gcs_addresses

    address = address or os.environ.get("RAY_ADDRESS")
    if not address and len(found := sorted(find_gcs_addresses())) > 1:
        raise StartError(f"RAY_ADDRESS has to say which of the systems on this machine it is: {' or '.join(found)}")
    # Where it is told the address, Ray does not look for the cluster's token by itself.
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        ray.init(address=address or "auto", namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        where = f"at {address}" if address else "on this machine; `glimprouter run` starts one"
        raise StartError(f"no system is running {where}") from None
