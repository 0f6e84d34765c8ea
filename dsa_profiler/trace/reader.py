"""Any trace file to columns: `read(path)` looks at the content, never at the extension.

nsys SQLite (schema 2.9.1 to 3.28), nsys parquetdir folders, and the chrome traces of
torch.profiler all become the same `columns.Trace`.
"""

from __future__ import annotations

from pathlib import Path

from dsa_profiler.columns import Trace
from dsa_profiler.errors import InputError
from dsa_profiler.trace.sqlite import MAGIC, Sqlite
from dsa_profiler.trace.tables import assemble

GZIP = b"\x1f\x8b"
SPACE = b"\xef\xbb\xbf \t\r\n"


def read(path: Path | str) -> Trace:
    """Read a trace. Raises InputError (exit 4) for whatever is no trace, with its cure."""
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    head = _head(path)
    if head == MAGIC:
        source = Sqlite(path)
        try:
            return assemble(source, path)
        finally:
            source.close()
    if head.startswith(GZIP) or head.lstrip(SPACE)[:1] in (b"{", b"["):
        from dsa_profiler.trace import kineto

        return kineto.read(path)
    raise InputError(
        "trace-unknown",
        f"{path.name} is no trace that can be read here",
        "give an nsys SQLite export (nsys export --type sqlite), a parquetdir export, "
        "or a torch.profiler .json or .json.gz",
    )


def _read_folder(path: Path) -> Trace:
    if not any(path.glob("*.parquet")):
        raise InputError(
            "trace-unknown",
            f"{path} is a folder without parquet tables",
            "give a trace file, or the folder that nsys export --type parquetdir wrote",
        )
    from dsa_profiler.trace.parquet import Parquet  # slow to import, rarely needed

    return assemble(Parquet(path), path)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except FileNotFoundError:
        raise InputError("trace-not-found", f"no such file: {path}", "check the path") from None
    except OSError as error:
        raise InputError(
            "trace-unreadable", f"cannot open {path}: {error.strerror}", "check its permissions"
        ) from None
