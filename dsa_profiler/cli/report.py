"""Example:  dsa-profiler report traces/my-session

Write one offline HTML page of a session or a trace: it loads nothing and opens from a mail or over
ssh. It goes to reports/NAME/index.html beside traces/NAME, or where --output says.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsa_profiler.cli import source, tables
from dsa_profiler.errors import Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source.add_argument(parser)
    parser.add_argument(
        "--beside", metavar="TABLE", type=Path, action="append", default=[],
        help="a table of latencies to draw beside the measured ones: shipped rows, or predict's",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the page to write")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.report import render

    with source.opened(args.source) as found:
        name = "index.html" if found.session else f"{args.source.name}.html"
        path = args.output or found.folder() / name
        model = found.session.model.architecture if found.session else None
        beside = [x for p in args.beside for t in tables.read(p) for x in tables.lines(t, model)]
        render.write(found.results, found.session, path, beside)
    if args.json:
        print(json.dumps({"schema": 1, "page": str(path), "cases": len(found.results.cases)}))
    elif not args.quiet:
        print(path)
    return int(Exit.OK)
