"""A proxy is for the world outside: what this machine asks itself goes there directly."""

from __future__ import annotations

import os

OWN = "localhost,127.0.0.1,::1"


def spare_this_machine() -> None:
    """For this process, and those that it starts."""
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if OWN not in spared and spared.strip() != "*":
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = f"{spared},{OWN}".lstrip(",")
