"""Renaming: what TensorFlow accepts stays, everything else can be turned back, and no two names become one."""

from __future__ import annotations

import itertools

import pytest
import tf_keras

from tfqat.models.names import given_name, legal_name

RENAMED = {
    "_stem": "._stem",
    "__a": ".__a",
    "conv 1": "conv>201",
    "a:b+c": "a>3ab>2bc",
    ":x": ".>3ax",
    "-x": ".>2dx",
    "a>b": "a>3eb",
    "._x": ".>2e_x",
    ".>x": ".>2e>3ex",
    ". ": ".>2e>20",
    "größe": "gr>c3>b6>c3>9fe",
    "backbone/_stem": "backbone/._stem",
    "_a/_b": "._a/._b",
}


@pytest.mark.parametrize(("name", "legal"), RENAMED.items())
def test_renamed(name: str, legal: str) -> None:
    assert legal_name(name) == legal
    assert given_name(legal) == name


@pytest.mark.parametrize("name", ["conv1", "Conv2D_3", "block.1", "a-b", "a_", ".x", "backbone/conv1", "1x", "a\\b"])
def test_legal_names_stay(name: str) -> None:
    assert legal_name(name) == given_name(name) == name


def test_short_names_are_reversible_and_accepted() -> None:
    names = ["".join(letters) for length in (1, 2, 3) for letters in itertools.product("a_.>- 2e", repeat=length)]
    assert [given_name(legal_name(name)) for name in names] == names
    assert len({legal_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", [*RENAMED, "\\x", "."])
def test_tf_keras_takes_it(name: str) -> None:
    layer = tf_keras.layers.Dense(2, name=legal_name(name))
    tf_keras.Model(inputs := tf_keras.Input((3,)), layer(inputs))
    assert given_name(layer.name) == name
