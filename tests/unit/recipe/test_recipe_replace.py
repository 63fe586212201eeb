"""The `replace` block: read from YAML under its key `with`, written back to the same, part of the hash, and in the JSON Schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfqat.errors import RecipeError
from tfqat.recipe.load import dump_recipe, load_recipe, recipe_hash
from tfqat.recipe.schema import Recipe

MINIMAL = """version: 1
model: {source: float.keras}
data: {train: "data.py:train", validation: "data.py:validation"}
training: {epochs: 1, batch_size: 1, learning_rate: 0.1, loss: mse, metrics: [accuracy]}
"""
REPLACING = (
    MINIMAL
    + """replace:
  - {match: "*", with: hard_swish}
  - {match: "re:head_.*", with: "blocks.py:narrow"}
"""
)


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_replacements_are_read_in_their_order(tmp_path: Path) -> None:
    found = load_recipe(written(tmp_path, REPLACING)).replace
    assert [(replacement.match, replacement.with_) for replacement in found] == [("*", "hard_swish"), ("re:head_.*", "blocks.py:narrow")]
    assert load_recipe(written(tmp_path, MINIMAL)).replace == ()


def test_dump_writes_the_key_that_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, REPLACING))
    text = dump_recipe(recipe)
    assert [line.strip() for line in text.splitlines() if "with" in line] == ["with: hard_swish", "with: blocks.py:narrow"]
    assert load_recipe(written(tmp_path, text, "again.yaml")) == recipe


def test_the_hash_depends_on_every_replacement(tmp_path: Path) -> None:
    texts = [MINIMAL, REPLACING, REPLACING.replace("hard_swish", "relu"), REPLACING.replace('"*"', "conv")]
    assert len({recipe_hash(load_recipe(written(tmp_path, text))) for text in texts}) == 4


def test_an_override_sets_one_key(tmp_path: Path) -> None:
    found = load_recipe(written(tmp_path, REPLACING), ("replace.0.with=repvgg", "replace.0.match=Add")).replace
    assert (found[0].match, found[0].with_, len(found)) == ("Add", "repvgg", 2)


def test_json_schema_has_the_key_of_the_recipe() -> None:
    block = Recipe.model_json_schema()["$defs"]["Replacement"]
    assert set(block["properties"]) == set(block["required"]) == {"match", "with"}


WRONG = {
    "neither built in nor a reference": (
        "{match: a, with: gelu}",
        "with: expected hard_swish, relu, repvgg, or module:function or path/file.py:function; got 'gelu'",
    ),
    "no match": ("{with: relu}", "match: missing; expected: Layers by name glob, `re:` regular expression, or layer class."),
    "nothing to put there": ("{match: a}", "with: missing; expected: hard_swish, relu, repvgg, or module:function"),
    "an empty pattern": ("{match: '', with: relu}", "match: expected text that is not empty; got ''"),
}


@pytest.mark.parametrize(("item", "problem"), WRONG.values(), ids=WRONG)
def test_problems_say_where_they_stand(tmp_path: Path, item: str, problem: str) -> None:
    path = written(tmp_path, f"{MINIMAL}replace:\n  - {item}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}:6: replace.0.{problem}")


@pytest.mark.parametrize("key", ["wiht", "with_"])
def test_an_unknown_key_is_compared_with_the_keys_of_the_recipe(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, f"{MINIMAL}replace:\n  - {{match: a, {key}: relu}}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert f"{path}:6: replace.0.{key}: unknown key; did you mean 'with'?" in caught.value.problems
