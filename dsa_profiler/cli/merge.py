"""Example:  dsa-profiler merge whole traces/whole-shard0 traces/whole-shard1

Join the sessions of an array job into one session NAME under --output. They must agree in all that
bears on the numbers: model, workload, tracer, settings, machine, and version of this tool.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsa_profiler import session
from dsa_profiler.errors import Exit, InputError, UsageError
from dsa_profiler.model import Case
from dsa_profiler.plan import Plan, Skip
from dsa_profiler.session import Chunk, Outcome, Session

IGNORED = ("tracer_choice", "workload_choice")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the joined session")
    parser.add_argument("sessions", metavar="SESSION", nargs="+", help="folders of sessions")
    parser.add_argument("--output", metavar="DIR", default=".", help="folder of traces/")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    folders = [Path(text) for text in args.sessions]
    parts = [session.load(folder) for folder in folders]
    for folder, part in zip(folders[1:], parts[1:], strict=True):
        _agree(folders[0], parts[0], folder, part)
    target = Path(args.output) / "traces" / args.name
    if target.exists():
        raise UsageError("session-exists", f"{target} is there already", "give another NAME")
    merged = merge(parts, args.name)
    _write(target, merged, folders, parts)
    done, cases = sum(o.status == "done" for o in merged.outcomes.values()), len(merged.plan.cases)
    if args.json:
        told = {"session": str(target), "cases": cases, "done": done, "parts": len(parts)}
        print(json.dumps({"schema": 1, **told}))
    else:
        print(f"{done} of {cases} cases done, from {len(parts)} sessions")
        print(target)
    return int(Exit.OK if done == cases else Exit.PARTIAL)


def merge(parts: list[Session], name: str) -> Session:
    """The parts as one session. A case that several hold keeps its first `done`, else its last
    outcome; chunks are named `<part>-<chunk>`.
    """
    cases: dict[Case, None] = {}
    skips: dict[Case, Skip] = {}
    chunks: list[Chunk] = []
    outcomes: dict[Case, Outcome] = {}
    for number, part in enumerate(parts):
        cases |= dict.fromkeys(part.plan.cases)
        skips |= {skip.case: skip for skip in part.plan.skipped}
        chunks += [_renamed(chunk, number) for chunk in part.chunks]
        for case, outcome in part.outcomes.items():
            if case not in outcomes or outcomes[case].status != "done":
                outcomes[case] = replace(outcome, chunk=_place(outcome.chunk, number))
    skipped = tuple(skip for case, skip in skips.items() if case not in cases)
    return replace(
        parts[0],
        name=name,
        created=min(part.created for part in parts),
        plan=Plan(tuple(cases), skipped),
        chunks=tuple(chunks),
        outcomes={case: outcomes[case] for case in cases if case in outcomes},
    )


def _place(chunk: str, number: int) -> str:
    return f"{number:03d}-{chunk}" if chunk else ""


def _renamed(chunk: Chunk, number: int) -> Chunk:
    name = _place(chunk.name, number)
    return replace(chunk, name=name, trace=chunk.trace.replace(chunk.name, name, 1))


def _write(target: Path, merged: Session, folders: list[Path], parts: list[Session]) -> None:
    """All or nothing: the chunks are copied beside the target, which then takes its name."""
    part_folder = target.with_name(f".{target.name}.merging")
    shutil.rmtree(part_folder, ignore_errors=True)
    try:
        for number, (folder, part) in enumerate(zip(folders, parts, strict=True)):
            for chunk in part.chunks:
                source = folder / "chunks" / chunk.name
                if source.exists():
                    shutil.copytree(source, part_folder / "chunks" / _place(chunk.name, number))
        session.save(part_folder, merged)
        part_folder.rename(target)
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def _agree(first_folder: Path, first: Session, folder: Path, other: Session) -> None:
    for what, mine, theirs in _facts(first, other):
        if mine != theirs:
            raise InputError(
                "sessions-differ",
                f"{folder} differs from {first_folder} in {what}",
                "merge only shards of one run on one kind of machine; use compare for others",
            )


def _facts(first: Session, other: Session) -> list[tuple[str, Any, Any]]:
    pairs = [
        (what, getattr(first, what), getattr(other, what))
        for what in ("tool_version", "model", "workload", "tracer", "settings")
    ]
    mine, theirs = first.environment, other.environment
    keys = sorted((mine.keys() | theirs.keys()) - set(IGNORED))
    return pairs + [(f"environment.{key}", mine.get(key), theirs.get(key)) for key in keys]
