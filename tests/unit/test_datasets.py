"""What tfqat asks of data: each refused case with its message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.datasets import as_dataset, check_batch, check_labelled, inputs_of, load_dataset, read_through
from tfqat.errors import DataError

IMAGES, LABELS = np.arange(40, dtype=np.float32).reshape(10, 4), np.arange(10)


def one_input() -> Any:
    x = tf_keras.Input((4,), name="x")
    return tf_keras.Model(x, x, name="one")


def two_inputs() -> Any:
    wide, narrow = tf_keras.Input((5,), name="wide"), tf_keras.Input((2,), name="narrow")
    return tf_keras.Model([wide, narrow], tf_keras.layers.Concatenate()([wide, narrow]), name="two")


def fails() -> Any:
    raise OSError("no such file")


def raising() -> Any:
    def check(images: Any) -> Any:
        tf.debugging.assert_less(images, 0.0)
        return images

    return tf.data.Dataset.from_tensor_slices(IMAGES).batch(2).map(check)


ACCEPTED = {
    "a dataset of pairs": tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4),
    "a dataset of inputs": tf.data.Dataset.from_tensor_slices(IMAGES).batch(4),
    "a tuple of arrays": (IMAGES, LABELS),
    "a tuple of one array": (IMAGES,),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    dataset = load_dataset(lambda: ACCEPTED[name], name="data.py:train", batch_size=4, model=one_input())
    batches = [np.asarray(inputs_of(batch)) for batch in dataset]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert np.array_equal(np.concatenate(batches), IMAGES)
    assert (dataset.name, dataset.batches, dataset.examples) == ("data.py:train", None, None)


def empty() -> Any:
    return tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4).take(0)


REFUSED = {
    "the function raises": (fails, r"^data.py:train: the function raised OSError: no such file$"),
    "a list": (lambda: [IMAGES], r"^data.py:train: returned list; expected a tf.data.Dataset"),
    "nothing": (lambda: None, r"^data.py:train: returned NoneType"),
    "an empty tuple": (lambda: (), r"^data.py:train: returned tuple"),
    "an array": (lambda: IMAGES, r"^data.py:train: returned ndarray"),
    "no batch": (empty, r"^data.py:train: the data set is empty"),
    "unequal arrays": (lambda: (IMAGES, LABELS[:9]), r"^data.py:train: arrays of the shapes \[\(10, 4\), \(9,\)\]; expected one length"),
    "a scalar": (lambda: (IMAGES, np.float32(1)), r"^data.py:train: arrays of the shapes"),
    "raises on the first batch": (raising, r"^data.py:train: the data set raised while it was read: "),
    "another size": (lambda: (IMAGES[:, :3], LABELS), r"a batch of shape \(4, 3\), but input 'x' of model 'one' takes \(None, 4\)"),
    "not in batches": (lambda: tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)), r"a batch of shape \(4,\), but input 'x'"),
    "two inputs": (lambda: ((IMAGES, IMAGES), LABELS), r"^data.py:train: 2 inputs, but model 'one' takes 1$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    load, message = REFUSED[name]
    with pytest.raises(DataError, match=message):
        load_dataset(load, name="data.py:train", batch_size=4, model=one_input())


def test_arrays_are_batched_as_asked() -> None:
    assert [len(images) for images, _ in as_dataset((IMAGES, LABELS), name="r", batch_size=3)] == [3, 3, 3, 1]


def test_inputs_of_a_batch() -> None:
    assert inputs_of(("images", "labels")) == "images"
    assert inputs_of(("images", "labels", "weights")) == "images"
    assert inputs_of("images") == "images"
    assert inputs_of({"a": 1}) == {"a": 1}


WIDE, NARROW = np.zeros((3, 5)), np.zeros((3, 2))


@pytest.mark.parametrize("inputs", [(WIDE, NARROW), [WIDE, NARROW], {"narrow": NARROW, "wide": WIDE}], ids=["tuple", "list", "by name"])
def test_several_inputs(inputs: Any) -> None:
    check_batch(two_inputs(), inputs, where="here")


@pytest.mark.parametrize("inputs", [(NARROW, WIDE), {"narrow": WIDE, "wide": NARROW}], ids=["tuple", "by name"])
def test_several_inputs_swapped(inputs: Any) -> None:
    with pytest.raises(DataError, match=r"^here: a batch of shape \(3, 2\), but input 'wide' of model 'two' takes \(None, 5\)"):
        check_batch(two_inputs(), inputs, where="here")


def labelled(data: Any) -> Any:
    return load_dataset(lambda: data, name="data.py:train", batch_size=4, model=one_input())


def generated(*, raises: bool = False, rank: bool = True) -> Any:
    """A set of unknown length, 3 batches of 4; it may raise after the second, or state no ranks."""

    def batches() -> Any:
        for number in range(3):
            if raises and number == 2:
                raise ValueError("the archive is damaged")
            yield IMAGES[:4], LABELS[:4]

    if not rank:
        return tf.data.Dataset.from_generator(batches, output_types=(tf.float32, tf.int64))
    signature = (tf.TensorSpec((None, 4), tf.float32), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


READ = {
    "arrays": ((IMAGES, LABELS), (3, 10)),
    "sample weights": ((IMAGES, LABELS, np.ones(10, np.float32)), (3, 10)),
    "a generator": (generated(), (3, 12)),
    "a generator without ranks": (generated(rank=False), (3, 12)),
}


@pytest.mark.parametrize("name", READ)
def test_read_through_counts(name: str) -> None:
    data, counted = READ[name]
    ticks: list[int] = []
    found = read_through(labelled(data), one_input(), advance=lambda: ticks.append(1))
    assert (found.batches, found.examples) == counted
    assert len(ticks) == counted[0]


def test_read_through_stops_where_asked() -> None:
    endless = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).repeat().batch(4)
    found = read_through(labelled(endless), one_input(), examples=9)
    assert (found.batches, found.examples) == (3, 12)


FAULTY = {
    "endless": (
        tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4).repeat(),
        r"^data.py:train: the data set never ends; tfqat reads it once per epoch or evaluation: remove \.repeat\(\)$",
    ),
    "raises on the third batch": (
        generated(raises=True),
        r"^data.py:train: the data set raised while .*the archive is damaged",
    ),
    "no labels": ((IMAGES,), r"^data.py:train: batch 0 has no labels; expected \(inputs, labels\)"),
    "four parts": ((IMAGES, LABELS, LABELS, LABELS), r"^data.py:train: batch 0 has 4 parts; expected \(inputs, labels\)"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_read_through_refuses(name: str) -> None:
    data, message = FAULTY[name]
    with pytest.raises(DataError, match=message):
        read_through(labelled(data), one_input())


def test_a_batch_with_another_number_of_labels() -> None:
    with pytest.raises(DataError, match=r"^here has 10 inputs, but labels of shape \(9,\); expected one for each input$"):
        check_labelled(one_input(), (tf.constant(IMAGES), tf.constant(LABELS[:9])), where="here")
