"""The wheel and the source archive: what they hold, and that the wheel works outside the repository, in an environment of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ISOLATION = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []  # with it, pip fetches the build backend

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *ISOLATION, "-w", folder, ROOT, cwd=folder)
    (path,) = folder.glob("tfqat-*.whl")
    return path


def test_what_the_wheel_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}
    tops = {name.partition("/")[0] for name in names}
    assert {top.partition(".dist-info")[0].partition("-")[0] for top in tops} == {"tfqat", "tfqat_cli"}
    for package, folder in (("tfqat", ROOT / "tfqat"), ("tfqat_cli", ROOT / "cli" / "tfqat_cli")):
        modules = {f"{package}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules <= set(names) and f"{package}/py.typed" in names
    assert not [name for name in names if "test" in name.lower() or "__pycache__" in name or name.endswith(".pyc")]
    bundled = [name for name in names if name.startswith("tfqat/_bundled/")]
    assert "tfqat/_bundled/examples/fashion_mnist/sample/LICENSE" in bundled
    assert sum(names.values()) < 12e6


@pytest.mark.parametrize("runs", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_the_wheel_outside_the_repository(wheel: Path, tmp_path: Path, runs: bool) -> None:
    """TensorFlow and the rest come from the environment of the tests; tfqat itself from the wheel alone."""
    venv.create(tmp_path / "env", system_site_packages=True, with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--ignore-installed", wheel, cwd=tmp_path)
    # `--system-site-packages` means those of the base interpreter; the tests' own environment may be a virtual one.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "_tests.pth").write_text("\n".join(others) + "\n")
    tfqat = tmp_path / "env" / "bin" / "tfqat"
    where = run(python, "-c", "import tfqat, tfqat_cli; print(tfqat.__file__, tfqat_cli.__file__)", cwd=tmp_path)
    assert all(str(site) in path for path in where.split())

    assert "tfqat init" in run(tfqat, "init", "--help", cwd=tmp_path)
    assert " init " in run(tfqat, "--help", cwd=tmp_path)
    run(tfqat, "init", "--example", "fashion_mnist", cwd=tmp_path)
    project = tmp_path / "fashion_mnist"
    shown = run(tfqat, "plan", "recipe.yaml", cwd=project)
    assert "stem" in shown and "QAT schedule" in shown
    run(tfqat, "doctor", cwd=project)
    if not runs:
        return
    settings: list[Any] = ["--set=ptq_only=true", "--set=compile.enabled=false", "--set=calibration.batches=2"]
    assert "proven" in run(tfqat, "run", "recipe.yaml", *settings, cwd=project)


def test_the_source_archive(tmp_path: Path) -> None:
    if not ISOLATION:
        pytest.skip("hatchling is not installed")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (path,) = tmp_path.glob("tfqat-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "tfqat/py.typed", "cli/tfqat_cli/main.py", "recipes/fashion_mnist.yaml"} <= names
    assert "examples/fashion_mnist/float.keras" in names and "tests/conftest.py" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith((".ci", "shared", "runs"))]
