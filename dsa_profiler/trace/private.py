"""What the texts of diagnostics may not give away: paths, settings, addresses, names.

Diagnostics are quoted in warnings and reports, so they are cleaned as they are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from dsa_profiler.trace import schema

PRIVATE_KEYS = re.compile(r"HOST|USER|DIR|PATH|FILE|COMMAND|ARGUMENT|DISPLAY|ENV|UUID|SESSION|NODE")
"""Keys of metadata whose values are looked for inside the texts of diagnostics."""
PATH = re.compile(
    r"(?<![\w/])(?:[A-Za-z]:\\|\\\\|~/|\.{0,2}/|[\w.-]+/[\w.-]+/)"
    r"[^\s'\"`,;)<>]*[^\s'\"`,;)<>:.]"
)
ASSIGNMENT = re.compile(r"\b[A-Za-z_]\w*=\S+")
ADDRESS = re.compile(r"\b[\w.+-]+@[\w.-]+|\b\d{1,3}(?:\.\d{1,3}){3}\b")


class Rows(Protocol):
    """A file with tables that can be read row by row."""

    def rows(self, table: str, names: Sequence[str]) -> list[tuple[Any, ...]]: ...


def clean_text(text: str, private: tuple[str, ...] = ()) -> str:
    """A diagnostic without paths, assignments, addresses and the values in `private`."""
    for pattern, name in ((PATH, "path"), (ASSIGNMENT, "assignment"), (ADDRESS, "address")):
        text = pattern.sub(f"<{name}>", text)
    for value in private:
        text = text.replace(value, "<redacted>")
    return text


def private_values(source: Rows) -> tuple[str, ...]:
    """Names of hosts, users, processes and the like that a file holds, longest first."""
    found: set[str] = set()
    for table in (schema.CAPTURE, *schema.EXPORT, "TARGET_INFO_SYSTEM_ENV"):
        rows = source.rows(table, ("name", "value"))
        secret = [str(v) for k, v in rows if PRIVATE_KEYS.search(str(k).upper())]
        found |= {part for s in secret for part in (s, s.partition("=")[2])}
    found |= {str(name) for (name,) in source.rows("PROCESSES", ("name",))}
    return tuple(sorted((v for v in found if len(v) > 3), key=lambda v: (-len(v), v)))
