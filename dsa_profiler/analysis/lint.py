"""What is wrong with a table of DSA module latencies before anybody serves from it.

Every finding is a value: a slug, how grave, what was seen and where, and what to do about it.
`error` is what a reader refuses or misreads; `warning` what makes an estimate wrong; `note` what is
worth knowing. Nothing here reads a file; how a table was stored is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd

from dsa_profiler.analysis import holes, shapes, systems
from dsa_profiler.analysis.subject import Finding, Severity, Subject, cell, least_ms
from dsa_profiler.columns import MODULE_KEY
from dsa_profiler.errors import InputError
from dsa_profiler.model import ModelShape, load_model
from dsa_profiler.results import CaseResult

CODECS = {"zstd", "snappy", "uncompressed"}
INTEGERS = {"num_heads", "batch_size", "isl", "step"}
SPREAD = 0.10
"""Of p10 to p90, as a share of the median."""
LEAST = 0.80
"""A row below this part of the least time is impossible; data sheets are a little off both ways."""
MODELS = {"DeepseekV32ForCausalLM": "deepseek-v3.2", "GlmMoeDsaForCausalLM": "glm-5"}


@dataclass(frozen=True, slots=True)
class Storage:
    """How a parquet table is stored; `codecs` is empty for a CSV."""

    types: Mapping[str, str]
    codecs: Mapping[str, str]
    nulls: Mapping[str, int]
    half_rows: int = 0
    """Rows that call half precision `float16`, which from 0.10 on finds nothing."""


def lint(
    frame: pd.DataFrame,
    phase: str,
    storage: Storage | None = None,
    reference: pd.DataFrame | None = None,
    results: Iterable[CaseResult] = (),
) -> list[Finding]:
    """All findings of one table, gravest first.

    reference   rows of the same machine (the shipped ones) that tell what a hole costs
    results     the cases behind the rows, whose kernels then explain spikes and knees
    """
    if not len(frame):
        raise InputError("table-empty", "the table has no rows", "give one that has")
    found = [*(_storage(storage) if storage else ()), *_duplicates(frame), *_values(frame)]
    other = None if reference is None else sound(reference)
    breakdowns = {cell(r): r for r in results if r.case.phase == phase}
    for architecture, rows in sound(frame).groupby("architecture", sort=True):
        device = str(rows["device"].iloc[0]) if "device" in rows.columns else ""
        of = Subject(rows, phase, _shape(architecture), systems.of_device(device), breakdowns)
        near = None if other is None else other[other["architecture"] == architecture]
        found += [*_units(of), *shapes.find(of), *holes.find(of, near), *_spread(of)]
    order = get_args(Severity)
    return sorted(found, key=lambda f: (order.index(f.severity), f.slug, f.what))


def sound(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows that can be reckoned with, one a key, as a reader keeps them: the last.

    A table of old that lacks a column of the key gets the one value it can mean.
    """
    out = frame.assign(latency=pd.to_numeric(frame["latency"], errors="coerce"))
    for column, default in (
        ("architecture", "DeepseekV32ForCausalLM"), ("mla_dtype", "bfloat16"),
        ("kv_cache_dtype", "bfloat16"), ("gemm_type", "unknown"),
    ):  # fmt: skip
        if column not in out.columns:
            out[column] = default
    if "op_name" in out.columns:
        out = out[~out["op_name"].astype(str).str.contains("skip_indexer")]
    out = out[np.isfinite(out["latency"]) & (out["latency"] > 0)].dropna(subset=list(MODULE_KEY))
    out = out.astype(dict.fromkeys(INTEGERS, "int64"))
    last: pd.DataFrame = out.drop_duplicates(list(MODULE_KEY), keep="last")
    return last


def _storage(storage: Storage) -> Iterable[Finding]:
    wanted = {**dict.fromkeys(INTEGERS, "int64"), "latency": "double", "power": "double"}
    for column, kind in storage.types.items():
        if storage.codecs and kind != wanted.get(column, kind):
            yield Finding(
                "column-type", "error", f"column {column} is {kind}; readers take {wanted[column]}",
                "write it with `dsa-profiler export --to aiconfigurator`",
            )  # fmt: skip
    for codec in sorted(set(storage.codecs.values()) - CODECS):
        yield Finding(
            "column-codec", "error", f"columns are compressed with {codec}, which is compiled out",
            "compress with zstd",
        )  # fmt: skip
    for column, count in storage.nulls.items():
        if count and column in (*MODULE_KEY, "latency", "power"):
            what = f"column {column} has {count} NULL: the whole file is refused"
            yield Finding("column-null", "error", what, "drop or mend those rows", count)
    if storage.half_rows and storage.codecs:
        what = f"{storage.half_rows} rows call half precision float16, which finds nothing"
        yield Finding("half-name", "error", what, "call it bfloat16", storage.half_rows)


def _duplicates(frame: pd.DataFrame) -> Iterable[Finding]:
    key = [c for c in (*MODULE_KEY, "op_name") if c in frame.columns]
    twice = frame[frame.duplicated(key, keep=False)]
    if not len(twice):
        return
    spread = twice.groupby(key, dropna=False)["latency"].agg(["min", "max"])
    worst = float((spread["max"] / spread["min"] - 1).max())
    yield Finding(
        "duplicate-key", "error",
        f"{len(spread)} keys come more than once, up to {worst:.0%} apart; the last row wins",
        "keep one row a key", len(twice),
    )  # fmt: skip


def _values(frame: pd.DataFrame) -> Iterable[Finding]:
    latency = pd.to_numeric(frame["latency"], errors="coerce")
    bad = int((~(np.isfinite(latency) & (latency > 0))).sum())
    if bad:
        what = f"{bad} latencies are no positive number"
        yield Finding("latency-value", "error", what, "drop or mend those rows", bad)
    if "op_name" not in frame.columns:
        return
    names = frame["op_name"].astype(str)
    other = ~names.str.contains("_module|^dsa_context$|^dsa_generation$")
    if other.any():
        some = ", ".join(sorted(names[other].unique())[:3])
        yield Finding(
            "op-name", "error", f"{int(other.sum())} rows are not of a whole module ({some})",
            "a kernel's time belongs into a table of its own", int(other.sum()),
        )  # fmt: skip


def _units(of: Subject) -> Iterable[Finding]:
    if of.shape is None or of.system is None:
        return
    sheet = systems.load(of.system.name, datasheet=True)
    ratio = of.frame["latency"].to_numpy(float) / least_ms(of.shape, sheet, of.frame, of.phase)
    middle, count = float(np.median(ratio)), int((ratio < LEAST).sum())
    if not 0.1 < middle < 500:
        unit = "seconds" if middle < 1 else "microseconds"
        yield Finding(
            "unit", "error",
            f"{of.name}: the median latency is {middle:.3g} x the least {of.system.name} needs: "
            f"this looks like {unit}",
            "latency is in milliseconds", len(ratio),
        )  # fmt: skip
    elif count:
        row = of.frame.iloc[int(np.argmin(ratio))]
        yield Finding(
            "too-fast", "error",
            f"{of.name}: {count} rows take less than {of.system.name} needs at its best, down to "
            f"{ratio.min():.2f} x ({row['num_heads']} heads, b {row['batch_size']}, isl "
            f"{row['isl']}, step {row['step']}, {row['gemm_type']})",
            "check the device, the sizes and what was timed", count,
        )  # fmt: skip


def _spread(of: Subject) -> Iterable[Finding]:
    frame = of.frame
    if not {"p10_ms", "p90_ms"} <= set(frame.columns):
        return
    wide = ((frame["p90_ms"] - frame["p10_ms"]) / frame["latency"]).to_numpy(float)
    hit = wide > SPREAD
    if hit.any():
        i = int(np.nanargmax(wide))
        row = frame.iloc[i]
        yield Finding(
            "spread", "warning",
            f"{of.name}: p10 to p90 spans more than {SPREAD:.0%} of the median in {int(hit.sum())} "
            f"of {len(frame)} rows, up to {wide[i]:.0%} ({row['num_heads']} heads, "
            f"b {row['batch_size']}, isl {row['isl']}, step {row['step']})",
            "lock the clocks, and raise --iterations", int(hit.sum()),
        )  # fmt: skip


def _shape(architecture: object) -> ModelShape | None:
    name = MODELS.get(str(architecture))
    return load_model(name) if name else None
