"""Runtimes and compilers of exported graphs; nothing here needs TensorFlow."""
