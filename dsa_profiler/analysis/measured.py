"""Measured rows as a cost model takes them: one device, one precision, one phase, no nonsense.

A row that cannot be a latency is an error that names it: no model is better than a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis.roofline import Points
from dsa_profiler.columns import PREDICTED
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case, Dtype, Phase
from dsa_profiler.results import Results

SPIKE = 1.08
"""A row this factor above both neighbours in length is a spike: longer cannot be faster."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Latencies in ns with their shapes, sorted, so that the order of the input cannot matter.

    `stages` holds ns by stage where a breakdown was measured; NaN where a stage did not run.
    """

    at: Points
    ns: Any
    dtype: Dtype = "bfloat16"
    stages: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ns)

    def __getitem__(self, which: Any) -> Rows:
        """The rows of a mask or index."""
        return Rows(
            self.at[which],
            self.ns[which],
            self.dtype,
            {stage: ns[which] for stage, ns in self.stages.items()},
        )

    def case(self, index: int) -> Case:
        return self.at.case(index, self.dtype)

    def stage(self, name: str) -> Rows:
        """The rows on which a stage ran, with its time as the latency."""
        ran = self.stages[name] > 0  # NaN compares False
        return Rows(self.at[ran], self.stages[name][ran], self.dtype)


def rows(
    phase: Phase,
    batch: Any,
    seq: Any,
    prefix: Any,
    heads: Any,
    ns: Any,
    dtype: Dtype = "bfloat16",
    stages: Mapping[str, Any] | None = None,
) -> Rows:
    """Columns to rows, checked and sorted. Shapes in tokens and heads, times in ns."""
    columns = [np.asarray(c, np.float64) for c in (batch, seq, prefix, heads)]
    ns = np.asarray(ns, np.float64)
    order = np.lexsort((ns, *columns))
    at = Points(phase, *(c[order] for c in columns))
    by_stage = {s: np.asarray(v, np.float64)[order] for s, v in sorted((stages or {}).items())}
    found = Rows(at, ns[order], dtype, by_stage)
    _check(found)
    return found


def of_results(results: Results) -> dict[tuple[Phase, Dtype], Rows]:
    """The cases of an analysed session, by phase and cache dtype, each with its stages."""
    groups: dict[tuple[Phase, Dtype], list[Any]] = {}
    for row in results.cases:
        groups.setdefault((row.case.phase, row.case.dtype), []).append(row)
    if len(set(results.trace.gpus)) > 1:
        raise mixed("devices", results.trace.gpus)
    out = {}
    for (phase, dtype), cases in groups.items():
        if len({c.timing for c in cases}) > 1:
            raise mixed("clocks", ("gpu", "host"))
        names = sorted({s.stage for c in cases for s in c.stages})
        times = [{s.stage: s.median_ns for s in c.stages} for c in cases]
        out[phase, dtype] = rows(
            phase,
            [c.case.batch_size for c in cases],
            [c.case.seq_len for c in cases],
            [c.case.prefix for c in cases],
            [c.case.num_heads for c in cases],
            [c.span_ns.median for c in cases],
            dtype,
            {name: [t.get(name, np.nan) for t in times] for name in names},
        )
    return out


def of_frame(frame: pd.DataFrame, phase: Phase) -> dict[tuple[str, str, str], Rows]:
    """A table of module latencies, by (architecture, precision of the weights, of the cache).

    Takes the columns of `columns.MODULE_HEADER` and of `columns.PERF_HEADER` (which has no
    architecture: "" then). Latency in ms. In context `step` counts cached tokens; in generation
    `isl` + `step` is the length that attention sees, the new token included. Rows that were
    predicted do not count as measured.
    """
    if "kernel_source" in frame:
        frame = frame[~frame.kernel_source.astype(str).str.startswith(PREDICTED)]
    for column, what in (("device", "devices"), ("version", "versions")):
        if column in frame and frame[column].nunique() > 1:
            raise mixed(what, frame[column])
    names = ("architecture", "gemm_type", "kv_cache_dtype")
    kv = frame.get("kv_cache_dtype", frame.get("dsa_dtype", "bfloat16"))
    keyed = frame.assign(
        architecture=frame.get("architecture", ""),
        gemm_type=frame.get("gemm_type", "bfloat16"),
        kv_cache_dtype=kv,
    )
    out = {}
    for key, part in keyed.groupby(list(names)):
        context = phase == "context"
        out[tuple(map(str, key))] = rows(
            phase,
            part.batch_size,
            part.isl if context else part.isl + part.step - 1,
            part.step if context else 0 * part.step,
            part.num_heads,
            part.latency * 1e6,
            _dtype(str(key[2])),
        )
    return out  # type: ignore[return-value]


def _dtype(name: str) -> Dtype:
    return "fp8" if name.startswith("fp8") else "bfloat16"


def mixed(what: str, values: Any) -> InputError:
    """The error of rows that do not belong together."""
    return InputError(
        "rows-mixed",
        f"rows of several {what}: {', '.join(sorted(map(str, set(values))))}",
        "fit each of them for itself",
    )


def spikes(found: Rows) -> Any:
    """A mask of rows that exceed both neighbours in length, all else equal.

    Physics is monotone in length; such a row is a data-dependent kernel (top-k among equal scores
    just past top-k, say) or a disturbed measurement. It is named and left out, never averaged in.
    """
    at, out = found.at, np.zeros(len(found), bool)
    order = np.lexsort((at.seq, at.prefix, at.batch, at.heads))
    ns = found.ns[order]
    same = np.ones(len(order) - 1, bool)
    for column in (at.heads, at.batch, at.prefix):
        same &= np.diff(column[order]) == 0
    inner = same[:-1] & same[1:]
    out[order[1:-1]] = inner & (ns[1:-1] > SPIKE * np.maximum(ns[:-2], ns[2:]))
    return out


def _check(found: Rows) -> None:
    bad = np.flatnonzero(~(np.isfinite(found.ns) & (found.ns > 0)))
    if len(bad):
        raise InputError(
            "latency-not-positive",
            f"{found.case(int(bad[0])).slug} has a latency of {found.ns[bad[0]] / 1e6:g} ms"
            + (f", and {len(bad) - 1} more rows like it" if len(bad) > 1 else ""),
            "leave such rows out, or measure them again",
        )
    for name, values in (("batch size", found.at.batch), ("sequence length", found.at.seq)):
        if len(np.unique(values)) < 2:
            raise InputError(
                "rows-too-few",
                f"{len(found)} row{'s' if len(found) != 1 else ''} with one {name}: "
                "no slope can be known",
                f"measure at least two values of the {name}, eight rows in all",
            )
    if len(found) < 8:
        raise InputError(
            "rows-too-few", f"{len(found)} rows are too few for a model", "measure at least eight"
        )
