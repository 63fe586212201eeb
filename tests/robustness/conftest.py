"""What the tests of hostile inputs share, and the counts that are printed at the end.

`TFQAT_ROBUSTNESS_JSON=FILE` also writes the counts to a file.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COUNTS = "TFQAT_ROBUSTNESS_JSON"
_PROPERTY = "robustness"


def _module(name: str) -> Any:
    """A module of this folder, which is no package."""
    known = f"tfqat_robustness_{name}"
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, HERE / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


for _name in ("commands", "hostile", "recipes", "damage"):
    _module(_name)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs `tfqat` commands; see commands.py."""
    made = _module("commands").Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


@pytest.fixture
def project(tiny_project: Path, tmp_path: Path) -> Path:
    """A copy of the tiny project."""
    return shutil.copytree(tiny_project, tmp_path / "project", ignore=shutil.ignore_patterns("runs", "__pycache__"))


@pytest.fixture(scope="session")
def finished_run(tiny_project: Path, commands: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run, fine-tuned and compiled. Not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    project = shutil.copytree(tiny_project, out / "project", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    short = ("--set", "training.epochs=1", "--set", "qat.max_epochs_divisor=1")
    ended = commands.run("run", "tiny.yaml", *short, cwd=project, limit_s=300)
    assert ended.code in (0, 1) and not ended.wrong, ended.told()
    (run,) = (project / "runs").iterdir()
    return run


@pytest.fixture(scope="session")
def other_formats(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as .h5 and SavedModel, and a Keras 3 model as .keras and .h5."""
    import keras
    import tf_keras

    folder = tmp_path_factory.mktemp("formats")
    model = tf_keras.models.load_model(tiny_project / "float.keras", compile=False)
    warnings.simplefilter("ignore")  # that these formats are old; pytest puts the filters back
    model.save(folder / "float.h5")
    model.save(folder / "saved_model", save_format="tf")
    image = keras.Input((12, 12, 1), name="image")
    x = keras.layers.ReLU(6.0, name="relu")(keras.layers.Conv2D(8, 3, name="stem")(image))
    three = keras.Model(image, keras.layers.Dense(4, name="logits")(keras.layers.GlobalAveragePooling2D(name="pool")(x)))
    three.save(folder / "three.keras")
    three.save(folder / "three.h5")
    return folder


SHORT = ("--set", "training.epochs=3", "--set", "qat.max_epochs_divisor=1")


@pytest.fixture(scope="session")
def cut_off_run(tiny_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was killed behind the first of three epochs. Not to be changed."""
    out = tmp_path_factory.mktemp("cut_off")
    project = shutil.copytree(tiny_project, out / "project", ignore=shutil.ignore_patterns("runs", "__pycache__"))
    with subprocess.Popen(
        [sys.executable, "-m", "tfqat_cli", "run", "tiny.yaml", *SHORT], cwd=project, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not list(project.glob("runs/*/checkpoint.npz")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    (run,) = (project / "runs").iterdir()
    return run


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Iterator[Callable[[str, str], None]]:
    """`count(kind, outcome)` for each input that was tried: printed at the end, over all processes of pytest-xdist."""
    counted: Counter[tuple[str, str]] = Counter()
    yield lambda kind, outcome: counted.update([(kind, outcome)])
    record_property(_PROPERTY, [[*key, number] for key, number in counted.items()])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many inputs of each kind were tried, and what became of them."""
    found: dict[str, Counter[str]] = {}
    reports = [report for several in terminalreporter.stats.values() for report in several if getattr(report, "when", "") == "teardown"]
    for report in reports:
        for name, rows in report.user_properties:
            for kind, outcome, number in rows if name == _PROPERTY else ():
                found.setdefault(kind, Counter())[outcome] += number
    if not found:
        return
    terminalreporter.write_sep("=", "hostile inputs")
    for kind, counted in sorted(found.items()):
        outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(counted.items()))
        terminalreporter.write_line(f"{kind:44}{sum(counted.values()):6,}: {outcomes}")
    total = sum((Counter(one) for one in found.values()), Counter())
    terminalreporter.write_line(f"{'in all':44}{sum(total.values()):6,}: {', '.join(f'{n:,} {what}' for what, n in sorted(total.items()))}")
    if os.environ.get(COUNTS):
        Path(os.environ[COUNTS]).write_text(json.dumps({kind: dict(counted) for kind, counted in sorted(found.items())}, indent=1) + "\n")
