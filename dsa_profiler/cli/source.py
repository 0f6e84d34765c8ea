"""What a verb reads: a session's folder, or one trace in any format, analysed."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsa_profiler import session
from dsa_profiler.errors import InputError
from dsa_profiler.results import Results
from dsa_profiler.session import Session

HELP = "a session's folder, or a trace (.sqlite, .nsys-rep, .qdstrm, parquetdir, .json[.gz])"
REPORTS = (".nsys-rep", ".qdrep", ".qdstrm")


@dataclass(frozen=True, slots=True)
class Source:
    """Results with where they come from. `session` is None for a trace alone; `trace` is then the
    file that was read, which is not `path` where that had to be converted.
    """

    path: Path
    trace: Path
    results: Results
    session: Session | None

    def folder(self) -> Path:
        """Where its reports belong: reports/<name> beside traces/<name>, else beside the source."""
        if self.session is None:
            return self.path.absolute().parent
        place = self.path.absolute()
        if place.parent.name == "traces":
            return place.parent.parent / "reports" / place.name
        return place

    def traces(self) -> list[tuple[str, Path]]:
        """(name, file) of every recording; a session has one a chunk."""
        if self.session is None:
            return [(self.path.name, self.trace)]
        return [
            (f"{self.session.name}-{chunk.name}", self.path / chunk.trace)
            for chunk in self.session.chunks
            if chunk.trace
        ]


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Analyse a session or a trace; a converted report is gone when the block ends."""
    from dsa_profiler import pipeline

    if not path.exists():
        raise InputError("not-found", f"no such file or folder: {path}", f"give {HELP}")
    if (path / session.MANIFEST).exists():
        yield Source(path, path, pipeline.analyze(path), session.load(path))
    else:
        with readable(path) as trace:
            yield Source(path, trace, pipeline.analyze(trace), None)


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """The file to read: a profiler's own report is converted with its nsys and is gone when the
    block ends, all else is read as it is.
    """
    if path.suffix not in REPORTS or not path.is_file():
        yield path
        return
    from dsa_profiler.capture import nsys

    with tempfile.TemporaryDirectory(prefix="dsa-profiler-") as folder:
        converted = Path(folder) / "trace.sqlite"
        nsys.to_sqlite(path, converted)
        yield converted


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SESSION|TRACE", type=Path, help=HELP)
