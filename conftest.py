"""Collects the code blocks of README and docs as tests (`tests/documentation/`)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent / "tests" / "documentation"))

from documentation_pages import pages

pytest_collect_file = pages().pytest()
