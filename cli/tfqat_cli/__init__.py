"""The `tfqat` command: parses, calls the library and prints; it holds no logic of its own."""
