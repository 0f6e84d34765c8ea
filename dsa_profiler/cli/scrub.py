"""Example:  dsa-profiler scrub server.sqlite server-clean.sqlite

Write a copy of a trace without environment variables, command lines, host and user names, process
lists and program output. Names of kernels, calls, ranges and threads with events stay, and so does
every number that analyze computes. OUT is an nsys SQLite, whatever IN is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsa_profiler.errors import Exit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", type=Path, help="any trace but a raw .nsys-rep")
    parser.add_argument("target", metavar="OUT", type=Path, help="the nsys SQLite to write")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.trace.scrub import scrub

    done = scrub(args.source, args.target)
    if args.json:
        print(json.dumps(done.as_json(), indent=2))
        return int(Exit.OK)
    print(f"wrote {args.target}")
    if done.dropped:
        print(f"left out: {', '.join(done.dropped)}")
    print(f"strings kept: {done.strings} of {done.strings_before}")
    return int(Exit.OK)
