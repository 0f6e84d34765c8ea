"""Example:  dsa-profiler align traces/mysweep server.sqlite -o alignment.html

Is the standalone layer what the server runs? Pairs the kernels of a standalone recording with
those of a server's, and says pass, fail or inconclusive with the evidence. Exit 0 for pass, 6 for
fail or inconclusive. STANDALONE is a session's folder or a trace; E2E one trace, one a rank, or a
folder of them. Ratios are standalone / e2e.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler import session
from dsa_profiler.cli.source import HELP, REPORTS, readable
from dsa_profiler.errors import Exit, InputError, UsageError

if TYPE_CHECKING:
    from dsa_profiler.analysis.options import Options
    from dsa_profiler.columns import Trace
    from dsa_profiler.model import Case
    from dsa_profiler.session import Session

TRACES = (*REPORTS, ".sqlite", ".json", ".json.gz")
GATES = ("names", "latency", "kernels")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("standalone", metavar="STANDALONE", type=Path, help=HELP)
    parser.add_argument(
        "e2e", metavar="E2E", type=Path, nargs="+", help="the server's traces, or their folder"
    )
    parser.add_argument("--case", default="", metavar="SLUG", help="the standalone case to align")
    parser.add_argument("--phase", choices=("context", "generation"), help="steps to compare with")
    parser.add_argument("--batch", type=_whole, metavar="N", help="requests a step to compare with")
    parser.add_argument(
        "--tolerance",
        action="append",
        default=[],
        metavar="X|STAGE=X",
        help="ratio up to which times agree, either way (2.0); again for single stages",
    )
    parser.add_argument(
        "--fail-on",
        default=",".join(GATES),
        metavar="LIST",
        help=f"checks that gate: {', '.join(GATES)}, or none",
    )
    parser.add_argument(
        "--min-steps", type=_whole, default=2, metavar="N", help="fewer prove nothing"
    )
    parser.add_argument("--model", metavar="MODEL", help="for index_topk and the layer count")
    parser.add_argument("--era", choices=tuple("ABCDE"), help="of TensorRT-LLM: docs/alignment.md")
    parser.add_argument("--e2e-kv", type=_whole, metavar="N", help="the server's longest sequence")
    parser.add_argument("--tp", metavar="N[,M]", help="tensor parallelism: server, or both sides")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="write the page")
    parser.add_argument("--markdown", action="store_true", help="Markdown for a pull request")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="the verdict alone")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.analysis.align import align

    gates = _gates(args.fail_on)
    with ExitStack() as stack:
        left, manifest = _standalone(args.standalone, args.case, stack)
        right = [_read(path, stack) for given in args.e2e for path in _files(given)]
        options = _options(args, gates, manifest)
        document = align(left, right, options).as_json()
    if args.output:
        from dsa_profiler.report import align_view

        align_view.write(document, args.output)
    _print(document, args)
    return int(Exit.OK if document["verdict"] == "pass" else Exit.GATE)


def _standalone(path: Path, case: str, stack: ExitStack) -> tuple[list[Trace], Session | None]:
    """The traces of a session's chunks that hold the case, or one trace."""
    if not (path / session.MANIFEST).exists():
        return [_read(p, stack) for p in _files(path)], None
    manifest = session.load(path)
    wanted = _case(case) if case else None
    chunks = [c for c in manifest.chunks if c.trace and (wanted is None or wanted in c.cases)]
    if not chunks:
        known = ", ".join(c.slug for c in manifest.plan.cases[:6])
        if wanted is not None:
            raise UsageError(
                "align-case", f"no recording of {case} in {path}", f"the plan holds {known}"
            )
        raise InputError(
            "session-empty",
            f"the session {manifest.name} holds no trace that can be read",
            "resume it with run, or read the log.txt of its chunks",
        )
    return [_read(path / c.trace, stack) for c in chunks], manifest


def _case(slug: str) -> Case:
    from dsa_profiler.model import Case

    return Case.from_slug(slug)


def _files(path: Path) -> list[Path]:
    """A trace, or every trace in a folder that is none itself (one a rank)."""
    if (path / session.MANIFEST).exists():
        raise InputError(
            "align-e2e-session",
            f"{path} is a session of the layer, not a recording of a server",
            "give the server's traces, or one chunk of the session: chunks/NAME/trace.sqlite",
        )
    if not path.is_dir() or any(path.glob("*.parquet")):
        return [path]
    found = sorted(p for p in path.iterdir() if p.name.endswith(TRACES))
    if not found:
        raise InputError(
            "align-empty-folder", f"no trace in {path}", f"put traces there: {', '.join(TRACES)}"
        )
    exported = {p.with_suffix("") for p in found if p.suffix == ".sqlite"}
    return [p for p in found if p.suffix not in REPORTS or p.with_suffix("") not in exported]


def _read(path: Path, stack: ExitStack) -> Trace:
    from dsa_profiler.trace import reader

    return reader.read(stack.enter_context(readable(path)))


def _options(args: argparse.Namespace, gates: frozenset[str], manifest: Session | None) -> Options:
    from dsa_profiler.analysis.options import Options
    from dsa_profiler.model import load_model

    if args.case:
        _case(args.case)
    shape = load_model(args.model) if args.model else manifest.model if manifest else None
    return Options(
        case=args.case,
        phase=args.phase or "",
        batch=args.batch,
        tolerance=_tolerance(args.tolerance),
        fail_on=gates,
        min_steps=args.min_steps,
        index_topk=shape.index_topk if shape else 2048,
        layers=shape.num_hidden_layers if shape else 0,
        architecture=shape.architecture if shape else "",
        era=args.era or "",
        e2e_kv=args.e2e_kv,
        tp=_tp(args.tp),
    )


def _tolerance(given: list[str]) -> Any:
    from dsa_profiler.analysis.verdict import Tolerance
    from dsa_profiler.marks import STAGES

    default, stages = 2.0, {}
    for text in given:
        stage, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if stage and stage not in STAGES:
            near = difflib.get_close_matches(stage, STAGES, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(STAGES)}"
            raise UsageError("align-tolerance", f"--tolerance: no stage {stage!r}", cure)
        if not 1.0 <= value < 1e6:
            raise UsageError(
                "align-tolerance",
                f"--tolerance {text} is no ratio",
                "give a number from 1 up, or STAGE=number with a stage of the report",
            )
        if stage:
            stages[stage] = value
        else:
            default = value
    return Tolerance(default, stages)


def _gates(text: str) -> frozenset[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    if names == ["none"]:
        return frozenset()
    wrong = [n for n in names if n not in GATES]
    if wrong or not names:
        raise UsageError(
            "align-fail-on",
            f"--fail-on does not know {', '.join(wrong) or 'nothing'}",
            f"give any of {', '.join(GATES)}, or none",
        )
    return frozenset(names)


def _tp(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        numbers = [int(n) for n in text.split(",")]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
        raise UsageError("align-tp", f"--tp {text} is no size", "give 8, or 1,8 for both sides")
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 up is needed")
    return value


def _print(document: dict[str, Any], args: argparse.Namespace) -> None:
    from dsa_profiler.export import align_markdown

    if args.json:
        print(json.dumps(document, indent=1, allow_nan=False))
    elif args.markdown:
        print(align_markdown.summary(document), end="")
    elif args.quiet:
        print(document["verdict"])
    else:
        print(align_markdown.text(document), end="")
        if args.output:
            print(f"page: {args.output}")
    if not args.json and not args.quiet:
        for problem in document["problems"]:
            print(
                f"inconclusive: {problem['what']}\n        cure: {problem['cure']}", file=sys.stderr
            )
        for note in document["notes"]:
            print(f"note: {note['what']}", file=sys.stderr)
