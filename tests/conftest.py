import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Helpers that several test modules of a folder share stand beside them.
sys.path.insert(0, str(Path(__file__).parent / "router"))
sys.path.insert(0, str(Path(__file__).parent / "e2e"))


# Machines that run tests may be slow; a slow example is not a failure. In CI every run tries the same examples.
settings.register_profile("patient", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: kills what others need, so it runs after them")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
