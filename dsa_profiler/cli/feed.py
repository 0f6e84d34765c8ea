"""`export --to aiconfigurator`: its options, and what it says when it is done."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler.cli.source import Source
from dsa_profiler.errors import Exit, InputError, UsageError

if TYPE_CHECKING:
    from dsa_profiler.analysis.agreement import Agreement
    from dsa_profiler.export.aiconfigurator import Written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("aiconfigurator (--to aiconfigurator)")
    group.add_argument("--root", type=Path, metavar="DIR", help="the root of tables to write")
    group.add_argument("--system", help="as aiconfigurator calls the machine, like h200_sxm")
    group.add_argument("--backend", default="trtllm", help="default trtllm")
    group.add_argument(
        "--package", metavar="VENV",
        help="where aiconfigurator is installed; default $DSA_AICONFIGURATOR",
    )  # fmt: skip
    group.add_argument(
        "--version", metavar="V",
        help="the version folder of the rows; default one of its own, like 1.3.0rc20+dsa",
    )  # fmt: skip
    group.add_argument(
        "--merge", action="store_true",
        help="let shipped rows answer where ours have none; without it they are kept out",
    )  # fmt: skip
    group.add_argument("--gemm-type", help="of the projections, where the session does not say")
    group.add_argument(
        "--heads", type=_numbers, default=(), metavar="N,N",
        help="local head counts that must be there",
    )  # fmt: skip


def run(found: Source, args: argparse.Namespace) -> int:
    from dsa_profiler.export import aic_package, aiconfigurator

    if found.session is None:
        raise InputError(
            "session-needed",
            f"{found.path} is a trace alone: tables also name model, workload and machine",
            "give the session's folder (traces/NAME)",
        )
    if args.root is None or args.system is None:
        raise UsageError(
            "arguments",
            "--to aiconfigurator needs --root and --system",
            "give both, like --root tables --system h200_sxm",
        )
    package = aic_package.locate(args.package)
    written = aiconfigurator.write(
        found.results,
        found.session,
        args.root,
        package=package,
        system=args.system,
        backend=args.backend,
        version=args.version,
        merge=args.merge,
        gemm_type=args.gemm_type,
        heads=args.heads,
    )
    shipped = {
        phase: frame[frame["architecture"].isin(ours["architecture"])]
        for phase, ours in written.tables.items()
        if (frame := aiconfigurator.shipped(written.target, phase)) is not None
    }
    agreements = _agreements(written, shipped)
    missing = _missing(written, shipped)
    if args.json:
        print(json.dumps(_document(written, agreements, missing), indent=1))
    elif not args.quiet:
        _print(written, agreements, missing)
    return int(Exit.OK)


def _agreements(written: Written, shipped: dict[str, Any]) -> dict[str, Agreement]:
    from dsa_profiler.analysis import agreement, lint

    return {
        phase: agreement.agree(lint.sound(written.tables[phase]), lint.sound(frame))
        for phase, frame in shipped.items()
    }


def _missing(written: Written, shipped: dict[str, Any]) -> list[str]:
    """What a lint finds to be missing, phase by phase."""
    from dsa_profiler.analysis import lint

    return [
        f.what
        for phase, frame in written.tables.items()
        for f in lint.lint(frame, phase, reference=shipped.get(phase))
        if f.slug.endswith("-missing")
    ]


def _print(written: Written, agreements: dict[str, Agreement], missing: list[str]) -> None:
    target = written.target
    print(f"{written.root}: {target.system}, {target.backend} {target.version} ({written.way})")
    for phase, frame in written.tables.items():
        heads = ", ".join(map(str, sorted({int(h) for h in frame["num_heads"]})))
        print(f"  {phase}: {len(frame)} rows, local heads {heads}")
        agrees = agreements.get(phase)
        if agrees is None:
            print("    nothing shipped to compare with")
        else:
            print(
                f"    shipped: {agrees.shared} keys in both, {agrees.only_ours} ours alone, "
                f"{agrees.only_theirs} theirs alone"
            )
        if agrees is not None and agrees.shared:
            _, p5, _, middle, _, p95, _ = agrees.quantiles
            print(f"    ours / shipped: median {middle:.3f}, p5 {p5:.3f}, p95 {p95:.3f}")
    for line in missing:
        print(f"  missing: {line}")
    way = {"patch": "sdk_patch/apply.py first, then "}.get(written.way, "")
    print(f"  use: {way}--systems-paths {written.root} --perf-db-version {target.version}")
    print(f"  check: dsa-profiler verify {written.root}")


def _document(
    written: Written, agreements: dict[str, Agreement], missing: list[str]
) -> dict[str, Any]:
    return {
        "schema": 1,
        "root": str(written.root),
        "way": written.way,
        "system": written.target.system,
        "backend": written.target.backend,
        "version": written.target.version,
        "rows": {phase: len(frame) for phase, frame in written.tables.items()},
        "shipped": {phase: agrees.as_json() for phase, agrees in agreements.items()},
        "missing": missing,
        "files": [str(f) for f in written.files],
    }


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
