from __future__ import annotations

import logging
import logging.config
from collections.abc import Iterator
from logging.handlers import MemoryHandler, RotatingFileHandler
from pathlib import Path

import pytest

from deployments.logs import sheltered


@pytest.fixture
def buffered(tmp_path: Path) -> Iterator[tuple[logging.Logger, MemoryHandler, Path]]:
    """A logger like Serve's in a replica: lines go through a buffer into a file."""
    path = tmp_path / "replica.log"
    logger = logging.Logger("serve-like")
    logging.Logger.manager.loggerDict["serve-like"] = logger
    handler = MemoryHandler(1, target=RotatingFileHandler(path))
    logger.addHandler(handler)
    yield logger, handler, path
    del logging.Logger.manager.loggerDict["serve-like"]
    handler.close()


def configure() -> None:
    """What vLLM does as an engine starts."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})


def test_lines_reach_the_file_after_logging_was_configured(
    buffered: tuple[logging.Logger, MemoryHandler, Path],
) -> None:
    logger, handler, path = buffered
    with sheltered("serve-like"):
        configure()
    for n in range(3):
        logger.warning("line %s", n)
    assert path.read_text().splitlines() == ["line 0", "line 1", "line 2"]
    assert not handler.buffer


def test_without_shelter_they_would_pile_up(buffered: tuple[logging.Logger, MemoryHandler, Path]) -> None:
    logger, handler, path = buffered
    configure()
    logger.warning("line")
    assert handler.buffer
    assert not path.read_text()
