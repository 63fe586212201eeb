"""Statements as a user writes them."""

from __future__ import annotations

from benchmarks.scoreboard.source_lines import count

SOURCE = '''
"""A module."""
import tool

def quantize(model, data):
    """Not counted."""
    # nor this
    reader = Reader(data)
    return tool.quantize(
        model,
        reader,
    )

def finetune(model):
    for layer in model.layers:
        layer.trainable = True
    return model

class Reader(tool.Reader):
    """Used by quantize."""

    def __init__(self, data):
        self.data = data

def unused():
    return 1
'''


def test_statements_count_once_and_what_is_used_of_the_module_counts_too() -> None:
    assert count(SOURCE) == {"quantize": 3, "finetune": 3}


def test_functions_that_use_each_other_end() -> None:
    assert count("def export(x):\n    return helper(x)\n\ndef helper(x):\n    return export(x)\n") == {"export": 2}
