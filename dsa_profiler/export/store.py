"""`analysis.sqlite`: every number of a session in tables with keys, to query or open in Datasette.

    meta, environment, settings      key -> value (JSON where it is no plain text or number)
    cases                            one row a case; `id` is the slug
    stages, kernels, iterations      what a case consists of, each with the case's id
    kernel_totals, range_totals      sums over the whole trace
    outcomes, skipped, warnings      what became of the plan, and what to know before believing it

Times are nanoseconds, as everywhere inside. Same input, same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from dsa_profiler import __version__
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import GpuState, Session, replacing

SCHEMA = 1


def write(results: Results, session: Session | None, path: Path) -> Path:
    """Write the database, replacing the file whole or not at all. `session` is None for a trace
    that no session of ours recorded: its tables are then there, and empty.
    """
    import sqlite_utils

    with replacing(path) as part:
        database = sqlite_utils.Database(part)
        try:
            with database.conn:
                for name, keys, columns, rows in tables(results, session):
                    foreign = [("case", "cases", "id")] if "case" in columns else []
                    table = database.table(name)
                    table.create(columns, pk=keys, foreign_keys=foreign)
                    table.insert_all(rows, pk=keys)
            database.vacuum()
        finally:
            database.close()
    return path


Rows: TypeAlias = Iterable[dict[str, Any]]
Table: TypeAlias = tuple[str, Any, dict[str, type], Rows]


def tables(results: Results, session: Session | None) -> Iterable[Table]:
    """(name, primary key, columns with types, rows) of every table, in the order of creation."""
    pairs: dict[str, type] = {"key": str, "value": str}
    yield "meta", "key", pairs, _pairs(_meta(results, session))
    yield "environment", "key", pairs, _pairs(session.environment if session else {})
    yield "settings", "key", pairs, _pairs(session.settings if session else {})
    yield "cases", "id", CASES, [_case_row(c) for c in results.cases]
    yield (
        "stages",
        ("case", "stage"),
        {"case": str, "stage": str, "group": str, "kernels_per_iteration": float,
         "median_ns": float, "share": float, "floor_ns": float, "roofline_share": float},
        (
            {"case": c.case.slug, **s.as_json(), "floor_ns": c.floor and c.floor.stage_ns(s.stage),
             "roofline_share": c.roofline_share(s.stage)}
            for c in results.cases
            for s in c.stages
        ),
    )  # fmt: skip
    yield (
        "kernels",
        ("case", "position"),
        {"case": str, "position": int, "stage": str, "name": str, "calls_per_iteration": float,
         "median_ns": float, "p10_ns": float, "p90_ns": float},
        (
            {"case": c.case.slug, "position": i, **asdict(k)}
            for c in results.cases
            for i, k in enumerate(c.kernels)
        ),
    )  # fmt: skip
    yield (
        "iterations",
        ("case", "iteration"),
        {"case": str, "iteration": int, "span_ns": int},
        (
            {"case": c.case.slug, "iteration": i, "span_ns": span}
            for c in results.cases
            for i, span in enumerate(c.iteration_spans_ns)
        ),
    )
    yield from _whole_trace(results)
    yield from _plan(results, session)


CASES: dict[str, type] = {
    "id": str, "phase": str, "batch_size": int, "seq_len": int, "num_heads": int, "dtype": str,
    "prefix": int, "timing": str, "iterations": int, "span_median_ns": float,
    "span_p10_ns": float, "span_p90_ns": float, "span_min_ns": float, "span_max_ns": float,
    "busy_ns": float, "overlap_ns": float, "gap_ns": float, "floor_ns": float,
    "roofline_share": float, "power_w": float, "idle_w": float, "energy_mj": float,
    "energy_above_idle_mj": float, "load_ns": float, "load_sm_mhz": float, "sm_mhz": float,
    "sm_mhz_min": int, "sm_mhz_max": int, "memory_mhz": int, "celsius": int, "throttled": str,
    "window_start_ns": int, "window_end_ns": int,
}  # fmt: skip


def _case_row(result: CaseResult) -> dict[str, Any]:
    return {
        "id": result.case.slug,
        **result.case.as_json(),
        "timing": result.timing,
        "iterations": result.iterations,
        **{f"span_{k}_ns": v for k, v in asdict(result.span_ns).items()},
        "busy_ns": result.busy_ns,
        "overlap_ns": result.overlap_ns,
        "gap_ns": result.gap_ns,
        "floor_ns": result.floor and result.floor.floor_ns,
        "roofline_share": result.roofline_share(),
        **_gpu(result.gpu),
        "window_start_ns": result.window_ns[0],
        "window_end_ns": result.window_ns[1],
    }


def _gpu(state: GpuState | None) -> dict[str, Any]:
    """What NVML saw of a case; NULL where it saw nothing."""
    if state is None:
        return {}
    low, mean, high = state.sm_mhz
    clocks = {"sm_mhz": mean, "sm_mhz_min": low, "sm_mhz_max": high}
    flat = {**state.as_json(), **clocks, "throttled": "; ".join(state.throttled)}
    return {name: flat[name] for name in CASES if name in flat}


def _whole_trace(results: Results) -> Iterable[Table]:
    yield (
        "kernel_totals",
        ("name", "stage"),
        {"name": str, "stage": str, "calls": int, "total_ns": int, "min_ns": int,
         "median_ns": float, "max_ns": int},
        (asdict(k) for k in results.kernel_totals),
    )  # fmt: skip
    yield (
        "range_totals",
        ("range", "kernel"),
        {"range": str, "kernel": str, "calls": int, "total_ns": int},
        (asdict(r) for r in results.range_totals),
    )


def _plan(results: Results, session: Session | None) -> Iterable[Table]:
    outcomes = session.outcomes if session else {}
    skipped = session.plan.skipped if session else ()
    yield (
        "outcomes",
        "id",
        {"id": str, "status": str, "chunk": str, "detail": str, "untraced_ns": float,
         "peak_memory_bytes": int},
        (
            {"id": case.slug, **{k: v for k, v in asdict(outcome).items() if k != "gpu"}}
            for case, outcome in outcomes.items()
        ),
    )  # fmt: skip
    yield (
        "skipped",
        "id",
        {"id": str, "reason": str},
        ({"id": s.case.slug, "reason": s.reason} for s in skipped),
    )
    everywhere = [("", w) for w in results.warnings]
    of_cases = [(c.case.slug, w) for c in results.cases for w in c.warnings]
    yield (
        "warnings",
        "id",
        {"id": int, "scope": str, "slug": str, "what": str, "cure": str},
        (
            {"id": i, "scope": scope, **warning.as_json()}
            for i, (scope, warning) in enumerate(everywhere + of_cases)
        ),
    )


def _meta(results: Results, session: Session | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"schema": SCHEMA, "tool_version": __version__}
    if session:
        meta |= {
            "session": session.name,
            "created": session.created,
            "recorded_with": session.tool_version,
            "workload": session.workload,
            "tracer": session.tracer,
            "model": session.model.as_json(),
        }
    return meta | {"trace": asdict(results.trace), "coverage": asdict(results.coverage)}


def _pairs(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"key": k, "value": v if isinstance(v, (str, int, float)) else json.dumps(v)}
        for k, v in values.items()
    ]
