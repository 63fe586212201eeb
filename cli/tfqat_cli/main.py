"""The Typer app, and what every command shares: quiet TensorFlow, errors as messages with exit code 2."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated, NoReturn

import typer

from tfqat import __version__
from tfqat.errors import TfqatError
from tfqat_cli.commands import bench, calibrate, doctor, export, infer, init, lint, plan, report, run, schema, sensitivity, verify
from tfqat_cli.commands import compile as compile_command
from tfqat_cli.quiet import keep_tensorflow_quiet

EXIT_ERROR = 2
EXIT_TERMINATED = 128 + signal.SIGTERM
# Without its standalone mode, Typer returns a command's exit code, and this one for Ctrl-C, instead of ending the process.
_TYPER_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, help="INT8 models for TensorRT from trained Keras models."
)
app.command("run")(run.run)
app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("lint")(lint.lint)
app.command("calibrate")(calibrate.calibrate)
app.command("sensitivity")(sensitivity.sensitivity)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("compile")(compile_command.compile_model)
app.command("bench")(bench.bench)
app.command("infer")(infer.infer)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("schema")(schema.schema)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False) -> None:
    if version:
        typer.echo(f"tfqat {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; a TfqatError or Ctrl-C ends with exit code 2, SIGTERM with 143, and no traceback."""
    keep_tensorflow_quiet()
    terminated = _interrupted_by_sigterm()
    code = None
    try:
        code = app(prog_name="tfqat", standalone_mode=False)
    except TfqatError as error:
        if terminated:  # in the user's generator, whose errors are errors of the data
            _fail("; ".join(["stopped by SIGTERM", *getattr(error, "__notes__", ())]), EXIT_TERMINATED)
        _fail("\n".join([str(error), *getattr(error, "__notes__", ())]))
    except (KeyboardInterrupt, typer.Abort) as error:
        _fail_interrupted(terminated, *error.args)
    except Exception as error:
        _fail_usage(error)
    if code == _TYPER_INTERRUPTED:
        _fail_interrupted(terminated)
    sys.exit(code)


def _interrupted_by_sigterm() -> list[int]:
    """Have SIGTERM, which schedulers send before they kill, end the work as Ctrl-C does; the list then holds it."""
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    return received


def _fail_interrupted(terminated: list[int], *notes: str) -> NoReturn:
    what, code = ("stopped by SIGTERM", EXIT_TERMINATED) if terminated else ("interrupted", EXIT_ERROR)
    _fail("; ".join([what, *notes]), code)


def _fail(message: str, code: int = EXIT_ERROR) -> NoReturn:
    typer.secho("error: ", fg="red", err=True, nl=False)
    typer.echo(message, err=True)
    sys.exit(code)


def _fail_usage(error: Exception) -> None:
    """Typer's own errors (an unknown option, a missing argument) print themselves; anything else is a fault and keeps its traceback.

    But for the name of a file that no file system takes: up to Python 3.13 `Path.exists` and its like raise for it.
    """
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        _fail(f"the name of a file is too long: {str(error.filename)[:80]}...")
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    sys.exit(EXIT_ERROR)
