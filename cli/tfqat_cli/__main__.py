"""`python -m tfqat_cli` is `tfqat`."""

from tfqat_cli.main import main

main()
