"""Rows of aiconfigurator's DSA module tables, made from the measured cases of a session.

One row is the span of the whole attention module (first kernel start to last kernel end), median
over iterations, in ms. A kernel's time never becomes such a row; kernels have a table of their own
with the same keys. A case timed on the host is refused: nobody can serve from such a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dsa_profiler.columns import MODULE_HEADER
from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.export.perf_csv import identity
from dsa_profiler.model import FAMILIES, Case
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session

GEMM_TYPES = ("bfloat16", "fp8_block", "nvfp4")
MODELS = {
    "DeepseekV32ForCausalLM": "deepseek-ai/DeepSeek-V3.2",
    "GlmMoeDsaForCausalLM": "zai-org/GLM-5",
}
PLAIN = {"reference": "bfloat16", "kernels": "bfloat16"}
"""Workloads whose projections are plain products of bfloat16 weights."""
OP_NAMES = {"context": "dsa_context_module", "generation": "dsa_generation_module"}
KERNEL_COLUMNS = ("stage", "kernel", "calls_per_iteration", "median_ms", "p10_ms", "p90_ms")


@dataclass(frozen=True, slots=True)
class Origin:
    """What every row of a session shares: who measured what on which machine."""

    framework: str
    version: str
    device: str
    kernel_source: str
    model: str
    architecture: str
    gemm_type: str


def origin(session: Session, gemm_type: str | None = None) -> Origin:
    """The session's own facts; `gemm_type` overrides or supplies the projections' precision.

    Raises `UsageError` where neither the session nor the caller knows the precision: a guessed one
    would answer for projections that nobody measured.
    """
    architecture = session.model.architecture
    if architecture not in FAMILIES:
        raise InputError(
            "architecture-unknown",
            f"aiconfigurator has no DSA table for {architecture}",
            f"it knows {', '.join(FAMILIES)}",
        )
    who, said = identity(session), session.environment
    return Origin(
        framework=str(said.get("framework") or who.framework),
        version=str(said.get("framework_version") or who.version),
        device=who.device,
        kernel_source=f"dsa_profiler_{session.workload}",
        model=MODELS[architecture],
        architecture=architecture,
        gemm_type=_gemm_type(session, gemm_type),
    )


def module_rows(
    results: Results, session: Session, gemm_type: str | None = None
) -> dict[str, pd.DataFrame]:
    """Phase -> rows in `MODULE_HEADER`, sorted by key, and `power` in W (idle included, as their
    own collector takes it) only where every case of the phase has it: the readers take no NULL.
    """
    source = origin(session, gemm_type)
    _refuse_untimed(results.cases)
    tables: dict[str, pd.DataFrame] = {}
    for phase in OP_NAMES:
        cases = [c for c in results.cases if c.case.phase == phase]
        if not cases:
            continue
        rows = [_row(c, source) for c in cases]
        watts = [c.gpu.power_w for c in cases if c.gpu and c.gpu.power_w is not None]
        if len(watts) == len(rows):
            for row, power in zip(rows, watts, strict=True):
                row["power"] = power
        tables[phase] = ordered(pd.DataFrame(rows))
    return tables


def lint_rows(results: Results, session: Session) -> dict[str, pd.DataFrame]:
    """Phase -> rows of any session, fit to be looked at and no more: host-timed cases, unknown
    precision and all, with p10_ms and p90_ms.
    """
    source = origin(session, recorded_gemm_type(session) or GEMM_TYPES[0])
    tables: dict[str, pd.DataFrame] = {}
    for phase in OP_NAMES:
        rows = [
            {
                **_row(measured, source),
                "p10_ms": measured.span_ns.p10 / 1e6,
                "p90_ms": measured.span_ns.p90 / 1e6,
            }
            for measured in results.cases
            if measured.case.phase == phase
        ]
        if rows:
            tables[phase] = pd.DataFrame(rows)
    return tables


def kernel_rows(results: Results, session: Session, gemm_type: str | None = None) -> pd.DataFrame:
    """One row a kernel of a case: the module's key, then stage, kernel and times in ms.

    `median_ms` is the sum over the kernel's calls in one iteration, median over iterations. There
    is no `latency` here, so that no reader can take a kernel for a module.
    """
    source = origin(session, gemm_type)
    rows = [
        {
            **_row(measured, source),
            "stage": kernel.stage,
            "kernel": kernel.name,
            "calls_per_iteration": kernel.calls_per_iteration,
            "median_ms": kernel.median_ns / 1e6,
            "p10_ms": kernel.p10_ns / 1e6,
            "p90_ms": kernel.p90_ns / 1e6,
        }
        for measured in results.cases
        for kernel in measured.kernels
    ]
    columns = [c for c in MODULE_HEADER if c != "latency"]
    return pd.DataFrame(rows, columns=[*columns, *KERNEL_COLUMNS])


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in one order whatever order they came in, columns as in `MODULE_HEADER`."""
    columns = [*MODULE_HEADER, *(c for c in ("power",) if c in frame.columns)]
    keys = ["model", "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads", "step", "isl"]
    return frame[columns].sort_values([*keys, "batch_size"], kind="stable", ignore_index=True)


def require_heads(tables: Mapping[str, pd.DataFrame], heads: Sequence[int]) -> None:
    """Refuse a session that lacks rows for a head count that somebody will ask for."""
    for phase, frame in tables.items():
        have = set(frame["num_heads"])
        missing = [h for h in heads if h not in have]
        if missing:
            raise InputError(
                "heads-missing",
                f"the session has no {phase} rows for {_list(missing)} local heads, only for "
                f"{_list(sorted(have))}",
                f"record them (--num-heads {','.join(map(str, missing))}), or leave them out here",
            )


def _row(measured: CaseResult, source: Origin) -> dict[str, Any]:
    case = measured.case
    generation = case.phase == "generation"
    return {
        "framework": source.framework,
        "version": source.version,
        "device": source.device,
        "op_name": OP_NAMES[case.phase],
        "kernel_source": source.kernel_source,
        "model": source.model,
        "architecture": source.architecture,
        "mla_dtype": "bfloat16",  # the query's precision; only the cache's differs
        "kv_cache_dtype": case.dtype,
        "gemm_type": source.gemm_type,
        "num_heads": case.num_heads,
        "batch_size": case.batch_size,
        "isl": 1 if generation else case.seq_len,
        "tp_size": 1,  # num_heads is the local count already
        "step": case.seq_len if generation else case.prefix,
        "latency": measured.span_ns.median / 1e6,
    }


def recorded_gemm_type(session: Session) -> str | None:
    """The precision of the projections, where the session says it or its workload has only one."""
    options = session.settings.get("options")
    places = (options if isinstance(options, dict) else {}, session.settings, session.environment)
    known = next((str(p["gemm_type"]) for p in places if p.get("gemm_type")), None)
    return known or PLAIN.get(session.workload)


def _gemm_type(session: Session, given: str | None) -> str:
    known = given or recorded_gemm_type(session)
    if known is None:
        raise UsageError(
            "gemm-type-unknown",
            f"session {session.name} does not record the precision of its projections",
            f"say it with --gemm-type, one of {', '.join(GEMM_TYPES)}",
        )
    if known not in GEMM_TYPES:
        raise UsageError(
            "gemm-type-unknown", f"unknown gemm type {known!r}", f"one of {', '.join(GEMM_TYPES)}"
        )
    return known


def _refuse_untimed(cases: Iterable[CaseResult]) -> None:
    rows = list(cases)
    if not rows:
        raise InputError(
            "cases-none",
            "there is no measured case to export",
            "record a session with `dsa-profiler run`, or give a trace that holds dsa: marks",
        )
    host = [c.case for c in rows if c.timing != "gpu" or c.case.dtype == "float32"]
    if host:
        raise InputError(
            "timing-host",
            f"{len(host)} of {len(rows)} cases were not timed on a GPU (first: {_first(host)})",
            "record the session on a GPU under nsys; a CPU's times must not feed aiconfigurator",
        )


def _first(cases: Sequence[Case]) -> str:
    return min(cases).slug


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(int(n)) for n in numbers)
