"""What every column means: docs/columns.md, from the list that a test holds to the files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAD = """# Columns

Made by `dsa-profiler help --columns`. Times in CSVs are milliseconds, in `analysis.sqlite` and in
`analyze --json` nanoseconds; the unit is in every column's name but `latency`, which is ms, and
`power`, which is W.
"""


@cache
def columns() -> Mapping[str, Any]:
    """`perf` and `kernels`: column -> meaning; `sqlite`: table -> column -> meaning."""
    text = resources.files("dsa_profiler.export").joinpath("columns.toml").read_text("utf-8")
    return tomllib.loads(text)


def document() -> str:
    """docs/columns.md."""
    found = columns()
    parts = [HEAD]
    parts.append("## dsa_{context,generation}_{bf16,fp8,fp32}_perf.txt\n\n" + _table(found["perf"]))
    parts.append(
        "## dsa_{context,generation}_{bf16,fp8,fp32}_kernels.csv\n\n" + _table(found["kernels"])
    )
    parts.append("## analysis.sqlite\n")
    parts += [f"### {name}\n\n{_table(table)}" for name, table in found["sqlite"].items()]
    return "\n".join(parts)


def _table(meanings: Mapping[str, str]) -> str:
    rows = [f"| `{column}` | {meaning} |" for column, meaning in meanings.items()]
    return "\n".join(["| column | |", "|---|---|", *rows]) + "\n"
