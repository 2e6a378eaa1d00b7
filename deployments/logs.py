"""Serve's log in a replica that starts a vLLM engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler


@contextmanager
def sheltered(name: str = "ray.serve") -> Iterator[None]:
    """Keeps the logger's handlers at work while something configures logging, as vLLM does when an engine starts.

    `logging.config.dictConfig` closes every handler there is. A file is opened again with the next line; but the
    buffer that Serve puts before its file forgets the file, and would keep every line of the replica's life in memory
    (as in https://github.com/ray-project/ray/pull/57169).
    """
    buffers = [(one, one.target) for one in logging.getLogger(name).handlers if isinstance(one, MemoryHandler)]
    try:
        yield
    finally:
        for handler, target in buffers:
            handler.setTarget(target)
