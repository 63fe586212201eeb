"""Trained models: loading them, and reading and rebuilding their graphs."""
