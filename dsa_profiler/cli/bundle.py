"""Example:  dsa-profiler bundle traces/my-session

Pack a session for a colleague into one .tar.gz: manifest, traces and outcomes, the page and the
tables. Traces are scrubbed once more on the way; logs, which may hold paths and names, stay here.
Unpacked, it is a session again, for `analyze`, `report`, `compare` and `align`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from dsa_profiler import session
from dsa_profiler.cli import source
from dsa_profiler.errors import Exit, InputError

PRIVATE = ("host", "hostname", "user", "username", "home", "cwd")
TOLD = ("csv", "sqlite", "markdown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", type=Path, help="a session's folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="NAME.tar.gz by default")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing")


def run(args: argparse.Namespace) -> int:
    if not (args.session / session.MANIFEST).exists():
        raise InputError(
            "session-not-found",
            f"no {session.MANIFEST} in {args.session}",
            "give the folder of a session",
        )
    found = session.load(args.session)
    target = args.output or Path(f"{found.name}.tar.gz")
    with tempfile.TemporaryDirectory(prefix="dsa-profiler-bundle-") as place:
        root = Path(place) / found.name
        _copy(args.session, found, root)
        with session.replacing(target) as part, part.open("wb") as file:
            _pack(root, file)
    if args.json:
        size = target.stat().st_size
        print(json.dumps({"schema": 1, "bundle": str(target), "bytes": size}))
    elif not args.quiet:
        print(target)
    return int(Exit.OK)


def _copy(folder: Path, found: session.Session, root: Path) -> None:
    """The session without what is private, and its page and tables beside it."""
    from dsa_profiler.cli.export import WRITERS
    from dsa_profiler.report import render
    from dsa_profiler.trace import scrub

    chunks = []
    for chunk in found.chunks:
        kept = chunk.trace if chunk.trace and (folder / chunk.trace).exists() else ""
        if kept:
            (root / kept).parent.mkdir(parents=True, exist_ok=True)
            scrub.scrub(folder / kept, root / kept)
        chunks.append(replace(chunk, trace=kept))
    public = {k: v for k, v in found.environment.items() if k.lower() not in PRIVATE}
    session.save(root, replace(found, chunks=tuple(chunks), environment=public))
    with source.opened(root) as read:
        if read.results.cases:
            for name in TOLD:
                WRITERS[name](read, root / "reports")
        render.write(read.results, read.session, root / "reports" / "index.html")


def _pack(root: Path, file: IO[bytes]) -> None:
    """A tar whose bytes depend on the files alone: no owner, no time, in order."""
    with (
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _files(root):
            info = tarfile.TarInfo(str(path.relative_to(root.parent)))
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                tar.addfile(info, content)


def _files(root: Path) -> Iterator[Path]:
    yield from sorted(p for p in root.rglob("*") if p.is_file())
