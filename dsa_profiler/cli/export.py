"""Example:  dsa-profiler export traces/my-session --to csv --to markdown

Write tables of a session: `csv` (perf and kernel CSVs), `sqlite` (analysis.sqlite, opens in
Datasette), `markdown` (a summary for a pull request), `perfetto` (a timeline for ui.perfetto.dev),
`aiconfigurator` (module tables). Files go to reports/NAME beside traces/NAME, or to --output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from dsa_profiler.cli import feed, source
from dsa_profiler.cli.source import Source
from dsa_profiler.errors import Exit, InputError, UsageError

FEED = "aiconfigurator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source.add_argument(parser)
    parser.add_argument(
        "--to",
        action="append",
        choices=(*WRITERS, "all", FEED),
        metavar="|".join((*WRITERS, "all", FEED)),
        help="may be given more than once; csv is the default, aiconfigurator goes alone",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the folder to write in")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing")
    feed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    wanted = list(dict.fromkeys(args.to or ["csv"]))
    if "all" in wanted:
        wanted = list(WRITERS)
    if FEED in wanted:
        return _feed(args, wanted)
    with source.opened(args.source) as found:
        folder = args.output or found.folder()
        files = [path for name in wanted for path in WRITERS[name](found, folder)]
    if args.json:
        print(json.dumps({"schema": 1, "files": [str(p) for p in files]}))
    elif not args.quiet:
        print("\n".join(map(str, files)))
    return int(Exit.OK)


def _feed(args: argparse.Namespace, wanted: list[str]) -> int:
    if wanted != [FEED]:
        raise UsageError("arguments", f"--to {FEED} goes alone", "give it in a call of its own")
    with source.opened(args.source) as found:
        return feed.run(found, args)


def _csv(found: Source, folder: Path) -> list[Path]:
    from dsa_profiler.export import perf_csv

    if found.session is None:
        raise InputError(
            "session-needed",
            f"{found.path} is a trace alone: the CSV also names model, workload and machine",
            "give the session's folder (traces/NAME)",
        )
    return perf_csv.write(found.results, found.session, folder)


def _sqlite(found: Source, folder: Path) -> list[Path]:
    from dsa_profiler.export import store

    return [store.write(found.results, found.session, folder / "analysis.sqlite")]


def _markdown(found: Source, folder: Path) -> list[Path]:
    from dsa_profiler.export import markdown

    return [markdown.write(found.results, found.session, folder / "summary.md")]


def _perfetto(found: Source, folder: Path) -> list[Path]:
    """One timeline a recording: clocks of different recordings have nothing in common."""
    from dsa_profiler.analysis import attribute, stages
    from dsa_profiler.export import perfetto
    from dsa_profiler.trace import reader

    written = []
    for name, path in found.traces():
        trace = reader.read(path)
        marks = attribute.find_marks(trace)
        attribution = attribute.attribute(trace, marks)
        staged = stages.stage(trace, attribution, marks)
        target = folder / f"{name}.perfetto.json.gz"
        codes, launches = staged.stage.tolist(), attribution.launch.tolist()
        written.append(perfetto.write(trace, codes, launches, target))
    return written


WRITERS: dict[str, Callable[[Source, Path], list[Path]]] = {
    "csv": _csv,
    "sqlite": _sqlite,
    "markdown": _markdown,
    "perfetto": _perfetto,
}
