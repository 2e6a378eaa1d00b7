from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from loadtest.command import free_port
from router.api.routes import build

sys.path.insert(0, str(Path(__file__).parent))

from one_answer import OneAnswer
from scripted import Scripted


@pytest.fixture
def server() -> Scripted:
    return Scripted()


@pytest.fixture
def one_answer() -> OneAnswer:
    return OneAnswer()


@pytest.fixture
def url(one_answer: OneAnswer) -> Iterator[str]:
    """Where the one answer is served."""
    server = uvicorn.Server(uvicorn.Config(build(lambda: one_answer), port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()
