"""Files that are cut short or have bits flipped: every command that reads one works or refuses it, and changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

damage = sys.modules["tfqat_robustness_damage"]
contents = sys.modules["tfqat_robustness_commands"].contents
SEED = os.environ.get("TFQAT_ROBUSTNESS_SEED", "0")
EACH = 8
"""Damages of each file in the whole suite."""


@pytest.fixture
def damaged(commands: Any, tmp_path: Path, count: Callable[[str, str], None]) -> Callable[..., None]:
    """Damage a file of a folder `times` times, and give it to its commands."""

    def check(folder: Path, victim: Any, times: int) -> None:
        path = folder / victim.file
        whole = path.read_bytes()
        for one in damage.damages(whole, times, f"{victim.kind} {victim.file} {SEED}"):
            path.write_bytes(one.done(whole))
            outcomes = set()
            for command in victim.commands:
                outcomes.add(once(folder, victim, command, f"{victim.file}, {one}"))
                path.write_bytes(one.done(whole))
            if path.suffix == ".keras" and one.how != "cut":
                path.write_bytes(whole)
                assert outcomes == {2} or not damage.is_in_a_member(path, one.at), (
                    f"{victim.file}, {one}: accepted, although a checksum differs"
                )
            count(f"damaged {victim.kind}", "refused" if outcomes == {2} else "worked" if 2 not in outcomes else "refused by some commands")
        path.write_bytes(whole)

    def once(folder: Path, victim: Any, command: Any, what: str) -> int:
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        before = contents(folder, less=("report.html",))
        ended = commands.run(*command(folder), cwd=tmp_path, limit_s=120)
        assert not ended.wrong, f"{what}: {ended.wrong}: {ended.told()}"
        assert ended.code in victim.codes, f"{what}: {ended.told()}"
        if victim.keeps:
            assert contents(folder, less=("report.html",)) == before, what
        if ended.code == 2:
            assert victim.keeps is False or not any(out.rglob("*")), f"{what}: left {list(out.rglob('*'))}"
        return int(ended.code)

    return check


def cases_of(kinds: dict[str, Any], sample: dict[str, int]) -> list[Any]:
    """All of them for the whole suite, and a few of them, each with few damages, for every run of the tests."""
    whole = [pytest.param(one, EACH, id=f"{name}, all", marks=pytest.mark.robustness) for name, one in kinds.items()]
    return [*[pytest.param(kinds[name], times, id=f"{name}, sample") for name, times in sample.items()], *whole]


# --- models ---

MODELS = {
    name: damage.Victim(
        kind="model file " + ("(.keras)" if name.endswith("s") else "(.h5)"),
        file=name,
        commands=(damage.at(damage.PLAN, name), damage.at(damage.INIT, name)),
    )
    for name in damage.MODELS
}


@pytest.mark.parametrize(("victim", "times"), cases_of(MODELS, {"float.keras": 3, "three.keras": 3, "float.h5": 3}))
def test_a_model_file(victim: Any, times: int, other_formats: Path, tiny_project: Path, tmp_path: Path, damaged: Any) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    source = tiny_project if victim.file == "float.keras" else other_formats
    shutil.copy(source / victim.file, folder / victim.file)
    damaged(folder, victim, times)


PLAN_FOLDER = damage._tfqat("plan", "FOLDER")
SAVED = {name: damage.Victim(kind="SavedModel", file=name, commands=(PLAN_FOLDER,)) for name in damage.SAVED_MODEL}


@pytest.mark.parametrize(("victim", "times"), cases_of(SAVED, {"saved_model.pb": 2}))
def test_a_saved_model(victim: Any, times: int, other_formats: Path, tmp_path: Path, damaged: Any) -> None:
    damaged(shutil.copytree(other_formats / "saved_model", tmp_path / "saved_model"), victim, times)


# --- runs ---

RUNS = {
    name: damage.Victim(kind="file of a run", file=name, commands=commands, codes=(0, 1, 2)) for name, commands in damage.RUN_FILES.items()
}


@pytest.mark.parametrize(("victim", "times"), cases_of(RUNS, {}))
def test_a_file_of_a_run(victim: Any, times: int, finished_run: Path, tmp_path: Path, damaged: Any) -> None:
    damaged(run_in(tmp_path, finished_run), victim, times)


ONNX = {"model.onnx": damage.Victim(kind="graph (.onnx)", file="model.onnx", commands=damage.GRAPH, codes=(0, 1, 2))}


@pytest.mark.parametrize(
    ("victim", "times"),
    [pytest.param(ONNX["model.onnx"], 3, id="sample"), pytest.param(ONNX["model.onnx"], 3 * EACH, id="all", marks=pytest.mark.robustness)],
)
def test_a_graph(victim: Any, times: int, tiny_onnx: Path, tmp_path: Path, damaged: Any) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    shutil.copy(tiny_onnx, folder / "model.onnx")
    shutil.copy(tiny_onnx, folder / "float.onnx")
    data_in(folder)
    damaged(folder, victim, times)


CUT_OFF = {
    name: damage.Victim(kind="file of a run to resume", file=f"run/{name}", commands=(damage.RESUME,), codes=(0, 1, 2), keeps=False)
    for name in damage.CUT_OFF
}


@pytest.mark.parametrize(("victim", "times"), cases_of(CUT_OFF, {}))
def test_a_run_that_is_resumed(victim: Any, times: int, cut_off_run: Path, tmp_path: Path, damaged: Any, commands: Any, count: Any) -> None:
    """Each damage in a copy of its own, as a run that goes on changes its directory."""
    for number in range(times // 2):
        project = shutil.copytree(cut_off_run.parents[1], tmp_path / str(number), ignore=shutil.ignore_patterns("runs"))
        shutil.copytree(cut_off_run, project / "run")
        one = list(damage.damages((project / victim.file).read_bytes(), times, f"{victim.file} {SEED}"))[number]
        (project / victim.file).write_bytes(one.done((project / victim.file).read_bytes()))
        before = contents(project, less=[path.name for path in (project / "run").iterdir()])
        ended = commands.run(*damage.RESUME(project), cwd=project, limit_s=240)
        assert not ended.wrong, f"{victim.file}, {one}: {ended.wrong}: {ended.told()}"
        assert ended.code in victim.codes, f"{victim.file}, {one}: {ended.told()}"
        after = contents(project, less=[path.name for path in (project / "run").iterdir()])
        assert {name: after.get(name) for name in before} == before
        count(f"damaged {victim.kind}", "refused" if ended.code == 2 else "worked")


# --- data ---

DATA = {
    name: damage.Victim(
        kind="array or image", file=name, commands=(damage.at(damage.INFER_UNIT if "g" in name[5:] else damage.INFER, name),)
    )
    for name in damage.DATA
}


@pytest.mark.parametrize(("victim", "times"), cases_of(DATA, dict.fromkeys(damage.DATA, 3)))
def test_data_for_infer(victim: Any, times: int, tiny_onnx: Path, tmp_path: Path, damaged: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(tiny_onnx, folder / "model.onnx")
    data_in(folder)
    damaged(folder, victim, times)


SUPER_GRADIENTS = """\
ptq_only: False
selective_quantizer_params: {calibrator_w: max, calibrator_i: histogram, per_channel: True, learn_amax: False, skip_modules: [stem]}
calib_params: {histogram_calib_method: percentile, percentile: 99.99, num_calib_batches: 8, verbose: False}
pre_launch_callbacks_list:
  - QATRecipeModificationCallback: {batch_size_divisor: 2, max_epochs_divisor: 10, lr_decay_factor: 0.01}
training_hyperparams: {max_epochs: 100, initial_lr: 0.1, optimizer: SGD, optimizer_params: {weight_decay: 1.e-4}}
dataset_params: {train_dataloader_params: {batch_size: 64}}
"""
FOREIGN = damage.Victim(kind="foreign recipe", file="foreign.yaml", commands=(damage.INIT_FROM,))


@pytest.mark.parametrize("times", [pytest.param(4, id="sample"), pytest.param(5 * EACH, id="all", marks=pytest.mark.robustness)])
def test_a_foreign_recipe(times: int, tmp_path: Path, damaged: Any) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "foreign.yaml").write_text(SUPER_GRADIENTS)
    damaged(folder, FOREIGN, times)


FOREIGN_TEXTS = {
    "a tag": "a: !!python/object/apply:os.system ['touch canary']\n",
    "a list": "- 1\n",
    "a huge number": f"calib_params: {{num_calib_batches: 0x{'F' * 5000}}}\n",
    "a huge batch": "calib_params: {num_calib_batches: null}\ndataset_params: {train_dataloader_params: {batch_size: 1.e+400}}\n",
    "an alias of itself": "a: &a [*a]\n",
    "aliases of aliases": "a: &a [x, x]\n"
    + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)),
    "aliases as settings": "selective_quantizer_params: &a {calibrator_w: max, skip_modules: [&b [x], *b]}\n",
    "depth": "[" * 2_000,
    "wrong types": "selective_quantizer_params: [1]\ncalib_params: 3\ntraining_hyperparams: x\npre_launch_callbacks_list: {a: 1}\n",
    "keys that are lists": "? [a, b]\n: 1\n",
    "NUL": "\x00",
    "dates": "training_hyperparams: {max_epochs: 2001-13-45}\n",
}


@pytest.mark.parametrize("text", FOREIGN_TEXTS.values(), ids=FOREIGN_TEXTS)
def test_a_foreign_recipe_of_a_kind(text: str, tmp_path: Path, commands: Any, count: Any) -> None:
    (tmp_path / "foreign.yaml").write_text(text)
    ended = commands.run("init", "--from", "foreign.yaml", "--out", "new", cwd=tmp_path, limit_s=60)
    assert not ended.wrong and ended.code in (0, 2), f"{ended.wrong}: {ended.told()}"
    assert not (tmp_path / "canary").exists()
    assert ended.code == 0 or [path.name for path in tmp_path.iterdir()] == ["foreign.yaml"]
    count("foreign recipe of a kind", "worked" if ended.code == 0 else "refused")


# --- what they are made from ---


def data_in(folder: Path) -> None:
    """An image as an array and as a file."""
    from PIL import Image

    image = np.random.default_rng(0).uniform(0, 1, (2, 12, 12, 1)).astype(np.float32)
    np.save(folder / "image.npy", image)
    np.savez(folder / "image.npz", image=image)
    pixels = Image.fromarray((image[0, ..., 0] * 255).astype(np.uint8))
    pixels.save(folder / "image.png")
    pixels.save(folder / "image.jpg")


def run_in(tmp_path: Path, finished_run: Path) -> Path:
    """A copy of a run beside a copy of its project, with an image for its engine."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    data_in(run)
    return run
