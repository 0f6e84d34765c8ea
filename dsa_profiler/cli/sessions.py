"""Example:  dsa-profiler sessions

List the sessions under traces/, the newest last: how many cases are done, what went wrong, and
whether a run is recording into one now. With a NAME: every case that is not done, and why, with the
end of its recording's log.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dsa_profiler import session
from dsa_profiler.capture import child
from dsa_profiler.errors import DsaError, Exit, InputError
from dsa_profiler.session import Session

LOG_LINES = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a session, or its folder")
    parser.add_argument("--output", metavar="DIR", default=".", help="folder of traces/")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    traces = Path(args.output) / "traces"
    if args.name is not None:
        return _one(_folder(args.name, traces), args.json)
    rows, broken = [], []
    for manifest in sorted(traces.glob(f"*/{session.MANIFEST}")):
        try:
            rows.append(_row(manifest.parent, session.load(manifest.parent)))
        except DsaError as error:
            broken.append(error.what)
    rows.sort(key=lambda row: (row["created"], row["name"]))
    if args.json:
        print(json.dumps({"schema": 1, "sessions": rows}, indent=2))
    else:
        for row in rows:
            print(_line(row))
        if not rows and not broken:
            print(f"no session under {traces}")
    for what in broken:
        print(f"unreadable: {what}", file=sys.stderr)
    return int(Exit.BAD_INPUT if broken else Exit.OK)


def _folder(name: str, traces: Path) -> Path:
    if (Path(name) / session.MANIFEST).exists():
        return Path(name)
    known = [manifest.parent.name for manifest in traces.glob(f"*/{session.MANIFEST}")]
    near = difflib.get_close_matches(name, known, n=1)
    if name not in known and near:
        raise InputError(
            "session-not-found", f"no session {name} under {traces}", f"did you mean {near[0]!r}?"
        )
    return traces / name


def _row(folder: Path, found: Session) -> dict[str, Any]:
    counts = Counter(outcome.status for outcome in found.outcomes.values())
    return {
        "name": found.name,
        "created": found.created,
        "model": found.model.name,
        "workload": found.workload,
        "tracer": found.tracer,
        "cases": len(found.plan.cases),
        "pending": len(found.pending()),
        "outcomes": dict(sorted(counts.items())),
        "recording": bool(child.members(folder)),
    }


def _line(row: dict[str, Any]) -> str:
    outcomes = {"done": 0, **row["outcomes"]}
    parts = [f"{outcomes.pop('done')}/{row['cases']} done"]
    parts += [f"{count} {status}" for status, count in outcomes.items()]
    parts += [f"{row['pending']} pending"] if row["pending"] else []
    parts += ["recording now"] if row["recording"] else []
    return f"{row['name']}  {row['workload']}/{row['tracer']}  {', '.join(parts)}"


def _one(folder: Path, as_json: bool) -> int:
    found = session.load(folder)
    wrong = [
        {
            "case": case.slug,
            "status": outcome.status,
            "detail": outcome.detail,
            "log": child.log_tail(folder / "chunks" / outcome.chunk, LOG_LINES).splitlines(),
        }
        for case, outcome in found.outcomes.items()
        if outcome.status != "done"
    ]
    row = _row(folder, found)
    if as_json:
        print(json.dumps({"schema": 1, **row, "not_done": wrong}, indent=2))
        return int(Exit.OK)
    print(_line(row))
    for entry in wrong:
        print(f"{entry['status']}: {entry['case']}  {entry['detail']}".rstrip())
        for line in entry["log"]:
            print(f"    {line}")
    return int(Exit.OK)
