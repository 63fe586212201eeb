"""What the comparisons make of figures: who wins, and what a table says of a tool that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoreboard import page, results, tables
from benchmarks.scoreboard.command import COMPARISONS, FIGURES, PAGE, SHOWN, main
from benchmarks.scoreboard.comparisons import accuracy, engines, imagenet
from benchmarks.scoreboard.peers import PEERS
from benchmarks.scoreboard.source_lines import FUNCTIONS, count


def _row(peer: str, **more: Any) -> dict[str, Any]:
    return {"peer": peer, "variant": "", "kind": "PTQ", "bits": 8, **more}


def _difference(points: float) -> dict[str, float]:
    return {"points": points, "deviation": 0.0, "standard_error": 0.1}


def test_accuracy_names_who_is_ahead_and_who_cannot() -> None:
    measured = {"accuracies": [0.9, 0.92], "to_float": _difference(-1.0)}
    rows = [
        _row("tfqat", **measured, to_tfqat=_difference(0.0)),
        _row("TFMOT", **measured, to_tfqat=_difference(0.3), literal=0.91, deployed="it breaks"),
        _row("Model Optimizer", cannot="no such width"),
    ]
    figures = {"small": {"title": "Small", "rows": rows}}

    (contest,) = accuracy.contests(figures)
    table = next(iter(accuracy.tables(figures))).markdown()

    assert (contest.peer, contest.verdict) == ("TFMOT", "loses")
    assert "| TFMOT | 91.00 | ± 1.41 | -1.00 ± 0.10 | +0.30 ± 0.10 | 91.00 | – |" in table
    assert "| Model Optimizer | cannot | – |" in table
    assert "Model Optimizer: cannot: no such width" in table
    assert "TFMOT: no ONNX (deployed): it breaks" in table


@pytest.mark.parametrize(
    ("theirs", "verdicts"),
    [
        pytest.param({"refused": "no"}, ["wins"], id="refused"),
        pytest.param({"kernels": 9, "reformats": 0, "int8_macs": 1.0}, ["level", "loses"], id="fewer kernels"),
        pytest.param({"kernels": 9, "reformats": 1, "int8_macs": 0.999}, ["wins", "level"], id="less in int8"),
    ],
)
def test_engines(theirs: dict[str, Any], verdicts: list[str]) -> None:
    ours = {"kernels": 10, "reformats": 0, "int8_macs": 1.0}
    rows = [
        {"peer": "tfqat", "variant": "", "targets": dict.fromkeys(engines.TARGETS, ours)},
        {"peer": "other", "variant": "", "targets": dict.fromkeys(engines.TARGETS, theirs)},
    ]

    assert [one.verdict for one in engines.contests({"Small": rows})] == verdicts * len(engines.TARGETS)


def test_imagenet_compares_graphs_and_what_has_no_graph_by_its_keras_model() -> None:
    def measures(decibels: float) -> dict[str, float]:
        return {"sqnr_db": decibels, "top1_agreement": 0.9}

    rows = [
        {"peer": "tfqat", "variant": "tensorrt", "keras": measures(20.0), "literal": measures(20.0)},
        {"peer": "MCT", "variant": "PTQ", "keras": measures(21.0), "not_exported": "no way"},
        {"peer": "ORT", "variant": "default", "literal": measures(5.0)},
    ]

    assert {one.peer: one.verdict for one in imagenet.contests(rows)} == {"MCT, PTQ": "loses", "ORT, default": "wins"}


def test_every_adapter_has_something_to_count() -> None:
    folder = Path(tables.__file__).with_name("peers")

    for place in PEERS.values():
        found = count((folder / f"{place.module}.py").read_text(encoding="utf-8"))
        assert set(found) >= {"quantize", "export"}
        assert all(found.values())
        assert set(found) <= set(FUNCTIONS)


def test_the_page_says_what_the_figures_say() -> None:
    text = page.markdown(results.read(FIGURES), {name: COMPARISONS[name] for name in SHOWN})
    document = PAGE.read_text(encoding="utf-8")

    assert tables.placed(document, text) == document, "python -m benchmarks --render"


def test_a_comparison_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["acuracy"])

    assert "no comparison is called 'acuracy'; there are lines, " in capsys.readouterr().err


def test_rows_that_are_measured_again_stand_where_they_stood() -> None:
    def row(peer: str, bits: int, kind: str, value: float) -> dict[str, Any]:
        return {"peer": peer, "bits": bits, "kind": kind, "value": value}

    earlier = {
        "title": "n",
        "rows": [row("float", 8, "PTQ", 1), row("MCT", 4, "PTQ", 2), row("MCT", 4, "QAT", 3), row("T", 4, "PTQ", 4)],
    }
    found = {"title": "n", "rows": [row("MCT", 4, "QAT", 5), row("float", 8, "PTQ", 1), row("new", 8, "PTQ", 6)]}
    rows = accuracy._with_earlier(earlier, found)["rows"]
    assert [(one["peer"], one["value"]) for one in rows] == [("float", 1), ("MCT", 5), ("T", 4), ("new", 6)]
    assert accuracy._with_earlier(None, found) == found
