"""The tests on every Python and TensorFlow that go together: `nox -l` lists the sessions.

`nox -s "tests(python='3.12', tensorflow='2.18')"` runs one.

A pair is listed if its packages can be installed together (resolved for Linux x86-64):

- TensorFlow has wheels for Python 3.13 from 2.20 on.
- TensorFlow 2.16 and 2.17 want ml-dtypes below 0.5, and onnx-ir wants 0.5 or later. They run with 0.5 nevertheless, so it is put in
  afterwards, without dependencies.
- tf-keras has the version of TensorFlow. On Python 3.10 the last onnxruntime is 1.23 and the last Keras 3.12.
"""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False

TENSORFLOW = ("2.16", "2.17", "2.18", "2.19", "2.20", "2.21")
PYTHON = {"3.10": TENSORFLOW, "3.11": TENSORFLOW, "3.12": TENSORFLOW, "3.13": ("2.20", "2.21")}
PAIRS = [(python, tensorflow) for python, several in PYTHON.items() for tensorflow in several]

OLD_ML_DTYPES = ("2.16", "2.17")
AGAINST_THE_BOUND = ("ml-dtypes>=0.5,<0.6", "onnx==1.22.*", "onnx-ir>=1.0,<2", "sympy", "mpmath")

# The road from a recipe to a proven graph and engines, numerics, TFMOT's parts, models of both Keras: a few minutes for each pair.
SAMPLE = (
    "tests/unit/test_tfqat_numerics.py",
    "tests/unit/quantize/test_quantize_load.py",
    "tests/unit/quantize/test_quantize_scheme.py",
    "tests/unit/export/test_export_onnx.py",
    "tests/unit/models/test_models_load.py",
    "tests/integration/test_pipeline.py",
)


@nox.session
@nox.parametrize("python,tensorflow", PAIRS)
def tests(session: nox.Session, tensorflow: str) -> None:
    """The fast tests; arguments after `--` are pytest's."""
    _install(session, tensorflow)
    _pytest(session, *session.posargs)


@nox.session
@nox.parametrize("python,tensorflow", PAIRS)
def sample(session: nox.Session, tensorflow: str) -> None:
    """Some of the tests. CI runs one pair; all of them: `nox -s sample --no-stop-on-first-error`."""
    _install(session, tensorflow)
    _pytest(session, *SAMPLE, *session.posargs)


def _install(session: nox.Session, tensorflow: str) -> None:
    pins = [f"tensorflow=={tensorflow}.*", f"tf-keras=={tensorflow}.*"]
    if tensorflow not in OLD_ML_DTYPES:
        session.install(*pins, "-e", ".[test,rtx]")
        return
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["test"], *extras["tensorboard"], *extras["images"], *extras["rtx"]]
    pinned = ("tensorflow>", "tf-keras", "onnx>", "onnx-ir", "tfqat[", "tensorboard>")
    session.install(*pins, *(line for line in wanted if not line.startswith(pinned)))
    session.install("--no-deps", *AGAINST_THE_BOUND)
    session.install("--no-deps", "-e", ".")


def _pytest(session: nox.Session, *arguments: str) -> None:
    # Deprecations differ from version to version; warnings are errors on the pinned versions of constraints.txt (see .ci/run).
    session.run("pytest", "-q", "-o", "filterwarnings=default", "-n", "2", "--dist", "loadfile", *arguments)


@nox.session(python="3.11")
def lint(session: nox.Session) -> None:
    """Lint, format, types and import layers, on the versions of constraints.txt."""
    session.install("-c", "constraints.txt", "-e", ".[dev]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session(python="3.11")
def package(session: nox.Session) -> None:
    """The wheel and the source archive, built and tried outside the repository."""
    session.install("-c", "constraints.txt", "-e", ".[dev]", "hatchling>=1.25", "build")
    session.run("python", "-m", "build", "--outdir", session.create_tmp())
    session.run("pytest", "-q", "-m", "slow", "tests/integration/test_wheel.py")
