"""Collects the code blocks of README and docs as tests (`tests/documentation/`); forgets the models of each file of tests behind it."""

import gc
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "tests" / "documentation"))

from documentation_pages import forget_models, pages

pytest_collect_file = pages().pytest()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Let go of models, and have the collector pass over what outlives the file: else each collection looks through gigabytes of it."""
    if nextitem is None or nextitem.path != item.path:
        forget_models()
        gc.collect()
        gc.freeze()
