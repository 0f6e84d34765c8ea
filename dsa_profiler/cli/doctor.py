"""Example:  dsa-profiler doctor

Check what this machine can record: Python, GPU, torch, nsys and whether a mark really arrives in a
recording, the workloads, aiconfigurator, disk; each line with its cure. Leaves with exit code 3
when something is broken; what is merely absent is no fault.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dsa_profiler.capture import doctor
from dsa_profiler.capture.doctor import Check
from dsa_profiler.errors import DsaError, Exit

SIGNS = {"ok": ("ok", "32"), "absent": ("--", "33"), "broken": ("!!", "31")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR",
                        help="where sessions would be written")  # fmt: skip
    parser.add_argument(
        "--contract", action="store_true", help="TensorRT-LLM's probe in full, as JSON"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="only what is broken")


def run(args: argparse.Namespace) -> int:
    if args.contract:
        print(json.dumps({"schema": 1, "tensorrt_llm": doctor.contract()}, indent=1))
        return int(Exit.OK)
    found = []
    for check in _checks(args.output):
        found.append(check)
        if not args.json and (not args.quiet or check.state == "broken"):
            _print(check)
    broken = any(check.state == "broken" for check in found)
    if args.json:
        print(json.dumps({"schema": 1, "checks": [c.as_json() for c in found]}, indent=1))
    return int(Exit.ENVIRONMENT if broken else Exit.OK)


def _checks(folder: Path) -> Iterator[Check]:
    yield from doctor.checks(folder, _marked)
    yield _aiconfigurator()


def _marked(trace: Path) -> int:
    from dsa_profiler import pipeline
    from dsa_profiler.trace import reader

    return sum(pipeline.iterations(reader.read(trace)).values())


def _aiconfigurator() -> Check:
    from dsa_profiler.export import aic_package

    try:
        package = aic_package.locate()
    except DsaError as error:
        state: doctor.State = "absent" if error.slug == "aiconfigurator-missing" else "broken"
        return Check("aiconfigurator", state, error.what, error.cure)
    return Check("aiconfigurator", "ok", package.version)


def _print(check: Check) -> None:
    sign, colour = SIGNS[check.state]
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        sign = f"\033[{colour}m{sign}\033[0m"
    print(f"{sign} {check.name:<14} {check.what}", flush=True)
    if check.state != "ok" and check.cure:
        print(f"   {'':<14} cure: {check.cure}", flush=True)
