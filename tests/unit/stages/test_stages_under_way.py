"""What a run that was cut off goes on from: read back as it was written, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfqat.errors import RunDirectoryError
from tfqat.run_directory import RunDirectory
from tfqat.stages.under_way import STATE, Run


def run_in(folder: Path) -> Any:
    nothing: Any = None
    return Run(directory=RunDirectory(folder, {}), inputs=nothing, origin=nothing, progress=nothing, write_log=print)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run = run_in(tmp_path)
    run.measured, run.metrics = {"float": {"accuracy": 0.1, "loss": float("nan")}}, {"seconds": {"ptq": 1.5}}
    run.finish("ptq", placement={"points": []})
    return tmp_path


def test_what_was_noted_is_restored(finished: Path) -> None:
    run = run_in(finished)
    run.restore()
    assert (run.done, run.metrics) == ({"ptq": {"placement": {"points": []}}}, {"seconds": {"ptq": 1.5}})
    assert run.measured["float"]["accuracy"] == 0.1


CHANGES = {
    "a key": ('"points"', '"point5"'),
    "a number": ("0.1", "0.5"),
    "its own checksum": ('"sha256"', '"sha257"'),
    "a part": ('"done"', '"dome"'),
}


@pytest.mark.parametrize(("before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_flipped_bit_is_told(before: str, after: str, finished: Path) -> None:
    text = (finished / STATE).read_text()
    (finished / STATE).write_text(text.replace(before, after))
    assert before in text
    with pytest.raises(RunDirectoryError, match=r"state\.json is damaged: its checksum differs; start the run again, without --resume"):
        run_in(finished).restore()
