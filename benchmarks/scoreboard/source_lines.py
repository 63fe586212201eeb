"""How much a user writes: the statements of a peer's `quantize`, `finetune` and `export`, and of what they use of their module.

A statement counts once, however many lines it takes; docstrings, comments and `def` lines are not counted, nor are imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

FUNCTIONS = ("quantize", "finetune", "export")
_Definition = ast.FunctionDef | ast.ClassDef


def count(source: str, names: Sequence[str] = FUNCTIONS) -> dict[str, int]:
    """Statements of each function that the module has, with those of the module's other definitions that it uses, each once."""
    definitions = {node.name: node for node in ast.parse(source).body if isinstance(node, _Definition)}
    return {name: sum(_statements(definitions[one]) for one in _used(name, definitions)) for name in names if name in definitions}


def _used(name: str, definitions: dict[str, _Definition]) -> set[str]:
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += [node.id for node in ast.walk(definitions[one]) if isinstance(node, ast.Name) and node.id in definitions]
    return found


def _statements(definition: _Definition) -> int:
    return sum(1 for _ in _bodies(definition))


def _bodies(node: ast.AST) -> Iterator[ast.stmt]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and not isinstance(child, _Definition) and not _is_docstring(child):
            yield child
        yield from _bodies(child)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
