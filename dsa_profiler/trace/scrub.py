"""A copy of a trace without what it gives away about the machine and its users.

An nsys export holds every environment variable, the command line and working directory, host and
user names, every process of the machine, and what the program printed. The copy is built anew from
lists of what may pass (tables, text columns, options), so nothing unknown comes through and no
deleted text stays in free pages. Names of kernels, API calls, ranges, marks and domains pass, as do
names of threads that have events: they are what the trace is about. Whatever is computed from the
copy equals what is computed from the original.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dsa_profiler.errors import UsageError
from dsa_profiler.session import replacing
from dsa_profiler.trace import reader, schema, writer
from dsa_profiler.trace.private import clean_text, private_values
from dsa_profiler.trace.sqlite import FAULTS, MAGIC, Sqlite, broken

KEPT_TABLES = re.compile(
    r"CUPTI_ACTIVITY_KIND_\w+|CUDA_GRAPH\w*|NVTX_(EVENTS|PAYLOAD_\w+)|StringIds|ThreadNames"
    r"|ENUM_\w+|META_DATA_CAPTURE|META_DATA_EXPORT|EXPORT_META_DATA|DIAGNOSTIC_EVENT"
    r"|ANALYSIS_DETAILS|PROFILER_OVERHEAD|MPI_RANKS"
    r"|TARGET_INFO_(GPU|CUDA_DEVICE|CUDA_CONTEXT_INFO|CUDA_STREAM|SESSION_START_TIME)"
)
KEPT_TEXTS = {
    schema.STRINGS: {"value"},
    schema.NVTX: {"text"},
    schema.GPU: {"name", "chipName"},
    schema.DIAGNOSTIC: {"text"},
    schema.KERNEL: {"tensorSizeMinusOneElements"},
    schema.CAPTURE: {"name", "value"},
    schema.EXPORT[0]: {"name", "value"},
    schema.EXPORT[1]: {"name", "value"},
    "TARGET_INFO_SESSION_START_TIME": {"utcTime"},
}
"""Text columns that pass, beside those of ENUM tables; others are emptied."""
KEPT_NVTX = (33, 34, 75, 76, *schema.PUSH_POP, *schema.START_END)
EXPORT_KEYS = re.compile(
    r"EXPORT_PRODUCT_\w+|EXPORT_SCHEMA_VERSION\w*|EXPORT_PLATFORM|EXPORT_ARCH|EXPORT_TIME_UTC"
    r"|EXPORT_CONFIG_TIME_SHIFT|EXPORT_PARAM_TIME_\w+|DSA_\w+_VERSION"
)
EXPORT_VALUE = re.compile(r"[A-Za-z0-9 ._:+-]{1,80}")
REFERENCE = re.compile(r"^\s*\"?(\w+)\"?\s[^\n]*REFERENCES\s+StringIds", re.MULTILINE)
USUAL_REFERENCES = ("demangledName", "shortName", "mangledName", "nameId", "textId", "jsonTextId")
"""Columns with ids of strings, for tables whose DDL has lost its comments."""
EMPTIED_REFERENCES = {"jsonTextId"}


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What a scrub did: tables kept and left behind, and strings kept of how many."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    strings: int
    strings_before: int

    def as_json(self) -> dict[str, Any]:
        return {"schema": 1, **asdict(self)}


def scrub(source: Path, target: Path) -> Scrubbed:
    """Write a copy of `source` that can be shown to others; `target` changes at once or not at all.

    A trace that is no SQLite becomes one, through its columns alone. Raises InputError for what is
    no trace.
    """
    trace = reader.read(source)
    if target.is_dir():
        raise UsageError("target-folder", f"{target} is a folder", "give a file name")
    if source.is_dir() or _head(source) != MAGIC:
        writer.write(trace, target)
        count = len(trace.strings)
        return Scrubbed((), (), count, count)
    with closing(Sqlite(source)) as original:
        private = private_values(original)
    with replacing(target) as part, _blame(source), closing(_connect(part)) as db:
        uri = f"file:{quote(str(source.resolve()))}?mode=ro&immutable=1"
        db.execute("ATTACH ? AS old", (uri,))
        return _copy(db, private)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(MAGIC))


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path))}", uri=True)
    db.text_factory = lambda raw: raw.decode("utf-8", "replace")
    db.create_function("clean_option", 2, _clean_option, deterministic=True)
    db.create_function("clean_export", 2, _clean_export, deterministic=True)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    return db


@contextmanager
def _blame(source: Path) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        raise broken(source, str(error)) from None


def _copy(db: sqlite3.Connection, private: tuple[str, ...]) -> Scrubbed:
    """Fill an empty file with what may pass; strings last, when it is known who refers to them."""
    found = db.execute(
        "SELECT name, sql FROM old.sqlite_master WHERE type = 'table' AND rootpage > 0 "
        "AND name NOT LIKE 'sqlite_%' ORDER BY name = ?, name",
        (schema.STRINGS,),
    ).fetchall()
    tables = {str(name) for name, _ in found}
    db.create_function("clean_text", 1, lambda text: clean_text(str(text), private))
    kept = {str(name): str(sql) for name, sql in found if KEPT_TABLES.fullmatch(name)}
    for name, sql in kept.items():
        db.execute(sql)
        columns = _columns(db, name)
        values = ", ".join(_value(name, c, kind, null) for c, kind, null in columns)
        names = ", ".join(_quote(c) for c, _, _ in columns)
        where = _where(name, {c for c, _, _ in columns}, kept, db)
        db.execute(
            f"INSERT INTO main.{name} ({names}) SELECT {values} FROM old.{name} WHERE {where}"
        )
    db.commit()
    has = schema.STRINGS in kept
    return Scrubbed(
        kept=tuple(sorted(kept)),
        dropped=tuple(sorted(tables - set(kept))),
        strings=_count(db, "main", schema.STRINGS) if has else 0,
        strings_before=_count(db, "old", schema.STRINGS) if has else 0,
    )


def _columns(db: sqlite3.Connection, table: str) -> list[tuple[str, str, bool]]:
    """Stored columns: name, declared type, whether NULL is allowed."""
    rows = db.execute(f"PRAGMA main.table_xinfo({table})").fetchall()
    return [(str(r[1]), str(r[2]).upper(), not r[3]) for r in rows if r[6] == 0]


def _value(table: str, column: str, kind: str, nullable: bool) -> str:
    """The SQL of what passes for a column."""
    name = _quote(column)
    if table == schema.CAPTURE and column == "value":
        return f"clean_option(name, {name})"
    if table in schema.EXPORT and column == "value":
        return f"clean_export(name, {name})"
    if table == schema.DIAGNOSTIC and column == "text":
        return f"clean_text({name})"
    if column in EMPTIED_REFERENCES:
        return "NULL" if nullable else "0"
    if kind in ("INTEGER", "INT", "BIGINT", "REAL"):
        return name
    if table.startswith("ENUM_") or column in KEPT_TEXTS.get(table, ()):
        return name
    return "NULL" if nullable else "''"


def _where(table: str, columns: set[str], kept: dict[str, str], db: sqlite3.Connection) -> str:
    """The SQL of which rows pass."""
    if table == schema.STRINGS:
        return _used_strings(kept, db)
    if table == schema.CAPTURE:
        return "clean_option(name, value) IS NOT NULL"
    if table in schema.EXPORT:
        return "clean_export(name, value) IS NOT NULL"
    if table == schema.NVTX and "eventType" in columns:
        return f"eventType IN ({', '.join(map(str, KEPT_NVTX))})"
    if table == "ThreadNames":
        busy = [
            f"SELECT globalTid FROM old.{t}" for t in (schema.RUNTIME, schema.NVTX) if t in kept
        ]
        return f"globalTid IN ({' UNION '.join(busy)})" if busy else "0"
    return "1"


def _used_strings(kept: dict[str, str], db: sqlite3.Connection) -> str:
    """Strings that a row of the copy refers to, by the references that the DDL tells."""
    used = ["SELECT -1"]
    for table, sql in kept.items():
        if table == schema.STRINGS:
            continue
        have = {c for c, _, _ in _columns(db, table)}
        for column in sorted({*REFERENCE.findall(sql), *USUAL_REFERENCES} & have):
            used.append(f"SELECT {_quote(column)} FROM main.{table} WHERE {_quote(column)} >= 0")
    return f"id IN ({' UNION '.join(used)})"


def _clean_option(name: object, value: object) -> str | None:
    """The value of a capture option that may pass, else NULL."""
    known = re.fullmatch(r"(PROCESS_\d+:)?(.+)", str(name))
    passes = known is not None and known[2] in schema.OPTIONS
    return str(value) if passes and re.fullmatch(schema.OPTION_VALUE, str(value)) else None


def _clean_export(name: object, value: object) -> str | None:
    if name == schema.SKIPPED_ROWS:
        return _clean_skipped(value)
    passes = EXPORT_KEYS.fullmatch(str(name)) and EXPORT_VALUE.fullmatch(str(value))
    return str(value) if passes else None


def _clean_skipped(value: object) -> str | None:
    try:
        rows = json.loads(str(value))
    except ValueError:
        return None
    if not isinstance(rows, dict):
        return None
    known = {k: v for k, v in rows.items() if re.fullmatch(r"\w{1,60}: [a-z ]{1,40}", k)}
    return json.dumps({k: v for k, v in known.items() if type(v) is int}, sort_keys=True)


def _count(db: sqlite3.Connection, side: str, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {side}.{table}").fetchone()[0])


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
