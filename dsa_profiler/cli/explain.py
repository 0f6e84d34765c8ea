"""Example:  dsa-profiler explain traces/mysweep generation-b64-s4095-h128-bfloat16

Say where the time of one measured case goes: each stage against the time that no kernel can beat,
what twice the length will add and to which stage, and which stages a spike consists of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dsa_profiler.errors import Exit, UsageError
from dsa_profiler.model import Case, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dsa_profiler.cli import source

    source.add_argument(parser)
    parser.add_argument("case", metavar="CASE", help="like generation-b64-s4095-h128-bfloat16")
    parser.add_argument("--model", help="of a trace alone; a session knows its own")
    parser.add_argument("--system", help="the GPU, where the trace does not name one we know")
    parser.add_argument("--gemm", choices=("bfloat16", "fp8", "nvfp4"), default="bfloat16")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.analysis import explain, systems
    from dsa_profiler.cli import source

    case = Case.from_slug(args.case)
    with source.opened(Path(args.source)) as opened:
        results, session = opened.results, opened.session
    if args.model or session is None:
        shape = load_model(args.model or "deepseek-v3.2")
    else:
        shape = session.model
    system = systems.load(args.system) if args.system else None
    for name in results.trace.gpus:
        system = system or systems.of_device(name)
    if system is None:
        raise UsageError(
            "system-unknown",
            f"no rates are known for {', '.join(results.trace.gpus) or 'a trace without a GPU'}",
            f"name the GPU with --system: {', '.join(systems.names())}",
        )
    found = explain.explain(case, results.cases, shape, system, args.gemm)
    if args.json:
        print(json.dumps(found.as_json(), indent=2))
        return int(Exit.OK)
    print("\n".join(found.sentences()) + "\n")
    print(f"{'stage':<20}{'measured_ms':>12}{'floor_ms':>10}{'over_ms':>10}{'share':>8}  bound")
    for line in found.stages:
        share = "" if line.share is None else f"{100 * line.share:.0f} %"
        print(
            f"{line.stage:<20}{line.measured_ns / 1e6:>12.4f}{line.floor_ns / 1e6:>10.4f}"
            f"{line.over_ns / 1e6:>10.4f}{share:>8}  {line.bound}"
        )
    return int(Exit.OK)
