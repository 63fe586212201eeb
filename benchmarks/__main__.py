"""`python -m benchmarks`."""

import sys

from benchmarks.scoreboard.command import main

sys.exit(main())
