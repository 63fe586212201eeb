"""What tfqat is worth beside other tools: `python -m benchmarks` measures all of it and writes `docs/benchmarks.md`.

The modules beside this file are scripts too, and import each other by their names alone; so their folder is put on the path.
"""

import sys
from pathlib import Path

FOLDER = str(Path(__file__).resolve().parent)
if FOLDER not in sys.path:
    sys.path.append(FOLDER)
