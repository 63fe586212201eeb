"""`python -m benchmarks [COMPARISON ...]`: measure, then write the figures and the page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.scoreboard import page, results, tables
from benchmarks.scoreboard.bench import Bench
from benchmarks.scoreboard.comparisons import accuracy, calibration, engines, export, imagenet, latency, lines, step
from benchmarks.scoreboard.environments import CACHE

COMPARISONS = {
    "lines": lines,
    "imagenet": imagenet,
    "calibration": calibration,
    "export": export,
    "engines": engines,
    "latency": latency,
    "step": step,
    "accuracy": accuracy,
}
"""In the order in which they run: the longest last, so that one that is cut short has the others."""
SHOWN = ("accuracy", "imagenet", "engines", "latency", "step", "calibration", "export", "lines")
ROOT = Path(__file__).resolve().parents[2]
PAGE, FIGURES = ROOT / "docs" / "benchmarks.md", ROOT / "benchmarks" / "results.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparisons that are named, or all; figures of the others stay. Each is written as soon as it is there."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if unknown := set(given.comparisons) - set(COMPARISONS):
        parser.error(f"no comparison is called {sorted(unknown)[0]!r}; there are {', '.join(COMPARISONS)}")
    figures = CACHE / "quick.json" if given.quick and given.json == FIGURES else given.json
    document = CACHE / "quick.md" if given.quick and given.page == PAGE else given.page
    seeds = min(given.seeds, 2) if given.quick else given.seeds
    part = {"networks": tuple(given.network or ()), "tools_wanted": tuple(given.tool or ())}
    bench = Bench(seeds=seeds, quick=given.quick, gptq=given.gptq, **part)
    again = ", ".join(name for names in part.values() for name in names)
    if again and given.comparisons != ["accuracy"]:
        parser.error("--network and --tool go with `accuracy` alone")
    began = time.monotonic()
    for name in () if given.render else [name for name in COMPARISONS if name in (given.comparisons or COMPARISONS)]:
        bench.say(f"== {name}")
        started, earlier = time.monotonic(), results.read(figures).get(name, {}) if again else {}
        settings = {"quick": True} if given.quick else {}
        settings |= {"seeds": bench.seeds} if name == "accuracy" else {}

        def keep(
            found: dict[str, Any],
            name: str = name,
            started: float = started,
            settings: dict[str, Any] = settings,
            earlier: dict[str, Any] = earlier,
        ) -> None:
            seconds = time.monotonic() - started
            sections = results.merged(results.read(figures), name, found, seconds=seconds, settings=settings, tools=dict(bench.tools))
            if earlier:
                sections[name] = results.partly_again(earlier, sections[name], again)
            results.write(figures, sections)
            _write_page(document, sections)

        keep(COMPARISONS[name].measure(replace(bench, keep=keep, earlier=earlier.get("figures", {}))))
    _write_page(document, results.read(figures))
    bench.say(f"{(time.monotonic() - began) / 60:.0f} minutes; {figures}, {document}; what the tools printed: {bench.folder}")
    return 0


def _write_page(path: Path, sections: results.Sections) -> None:
    text = (path if path.is_file() else PAGE).read_text(encoding="utf-8")
    generated = page.markdown(sections, {name: COMPARISONS[name] for name in SHOWN})
    path.write_text(tables.placed(text, generated), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=str(__doc__))
    parser.add_argument("comparisons", nargs="*", metavar="COMPARISON", help=f"of {', '.join(COMPARISONS)}; none: all")
    parser.add_argument("--seeds", type=int, default=5, help="of accuracy (5)")
    parser.add_argument("--network", action="append", metavar="NAME", help="of accuracy: this one again, the others stay; repeatable")
    parser.add_argument("--tool", action="append", metavar="TITLE", help="of accuracy: this one, float and tfqat again; repeatable")
    parser.add_argument("--gptq", action="store_true", help="in accuracy, MCT's GPTQ too: it takes longer than everything else")
    parser.add_argument("--quick", action="store_true", help="few images and rounds, only to see that all works; writes to .benchmarks/")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the page from the figures")
    parser.add_argument("--json", type=Path, default=FIGURES, help="the file of figures")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose generated part is replaced")
    return parser
