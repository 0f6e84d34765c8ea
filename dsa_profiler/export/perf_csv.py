"""Perf CSVs: one row a case in the columns that aiconfigurator's users know, and one row a kernel.

`dsa_{context,generation}_{bf16,fp8,fp32}_perf.txt` starts with `columns.PERF_HEADER`, exactly and
in that order; what we know beyond it (spread, timing, ...) only follows. Latency is the median
span of the module in milliseconds. In context `isl` counts the new tokens and `step` the cached
ones; in generation `isl` is the number of cached tokens and `step` the one token that is added.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dsa_profiler.columns import PERF_HEADER
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import GpuState, Session, replacing

EXTRA_HEADER = (
    "prefix", "timing", "workload", "tracer", "iterations", "p10_ms", "p90_ms", "min_ms", "max_ms",
    "busy_ms", "overlap_ms", "gap_ms", "floor_ms", "roofline_share", "power", "power_idle_w",
    "energy_mj", "energy_above_idle_mj", "load_ms", "load_sm_mhz", "sm_mhz", "sm_mhz_min",
    "sm_mhz_max", "celsius", "throttled", "case",
)  # fmt: skip
KERNEL_HEADER = (
    "case", "phase", "batch_size", "isl", "num_heads", "dsa_dtype", "prefix", "timing", "stage",
    "kernel", "calls_per_iteration", "latency", "p10_ms", "p90_ms",
)  # fmt: skip
DTYPE_NAMES = {"bfloat16": "bf16", "fp8": "fp8", "float32": "fp32"}
FRAMEWORKS = {"trtllm": ("TRTLLM", "tensorrt_llm")}
"""Workload -> (framework's name, the package that carries its version); else plain PyTorch,
or the package whose kernels PyTorch called.
"""


class Identity(NamedTuple):
    """What ran where: the framework with its version, and the device by name."""

    framework: str
    version: str
    device: str


def write(results: Results, session: Session, folder: Path) -> list[Path]:
    """Write the perf and kernel CSVs of every phase and dtype measured; returns their paths.

    Raises `InputError` when there is no case to write. Each file is replaced whole or not at all.
    """
    if not results.cases:
        raise InputError(
            "cases-none",
            "there is no measured case to export",
            "record a session with `dsa-profiler run`, or give a trace that holds dsa: marks",
        )
    written = []
    for phase, dtype in sorted({(c.case.phase, c.case.dtype) for c in results.cases}):
        rows = [c for c in results.cases if (c.case.phase, c.case.dtype) == (phase, dtype)]
        stem = f"dsa_{phase}_{DTYPE_NAMES[dtype]}"
        perf, kernels = folder / f"{stem}_perf.txt", folder / f"{stem}_kernels.csv"
        _write_csv(perf, (*PERF_HEADER, *EXTRA_HEADER), perf_rows(rows, session))
        _write_csv(kernels, KERNEL_HEADER, kernel_rows(rows))
        written += [perf, kernels]
    return written


def perf_rows(cases: Iterable[CaseResult], session: Session) -> Iterator[dict[str, Any]]:
    """One row a case, keyed by the header's names; times are milliseconds as text."""
    who = identity(session)
    for result in cases:
        case, span = result.case, result.span_ns
        yield {
            **who._asdict(),
            "op_name": f"dsa_{case.phase}",
            "kernel_source": f"dsa_profiler_{session.workload}",
            "dsa_dtype": case.dtype,
            "num_heads": case.num_heads,
            "index_n_heads": session.model.index_n_heads,
            "index_topk": session.model.index_topk,
            "batch_size": case.batch_size,
            "isl": case.seq_len,
            "tp_size": 1,  # one device ran it: `num_heads` is already the local head count
            "step": step(case),
            "latency": ms(span.median),
            "prefix": case.prefix,
            "timing": result.timing,
            "workload": session.workload,
            "tracer": session.tracer,
            "iterations": result.iterations,
            "p10_ms": ms(span.p10),
            "p90_ms": ms(span.p90),
            "min_ms": ms(span.min),
            "max_ms": ms(span.max),
            "busy_ms": ms(result.busy_ns),
            "overlap_ms": ms(result.overlap_ns),
            "gap_ms": ms(result.gap_ns),
            "floor_ms": ms(result.floor.floor_ns) if result.floor else "",
            "roofline_share": "" if (share := result.roofline_share()) is None else f"{share:.4f}",
            **gpu_columns(result.gpu),
            "case": case.slug,
        }


def gpu_columns(state: GpuState | None) -> dict[str, Any]:
    """What NVML saw of a case; `power` is in W, as aiconfigurator reads it. Empty where unknown."""
    if state is None:
        return {}
    low, mean, high = state.sm_mhz
    return {
        "power": _text(state.power_w, ".2f"),
        "power_idle_w": _text(state.idle_w, ".2f"),
        "energy_mj": _text(state.energy_mj, ".4f"),
        "energy_above_idle_mj": _text(state.energy_above_idle_mj, ".4f"),
        "load_ms": "" if state.load_ns is None else ms(state.load_ns),
        "load_sm_mhz": _text(state.load_sm_mhz, ".1f"),
        "sm_mhz": f"{mean:.1f}",
        "sm_mhz_min": low,
        "sm_mhz_max": high,
        "celsius": state.celsius,
        "throttled": "; ".join(state.throttled),
    }


def _text(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def kernel_rows(cases: Iterable[CaseResult]) -> Iterator[dict[str, Any]]:
    """One row a kernel of a case; `latency` sums its calls in one iteration, median, in ms."""
    for result in cases:
        case = result.case
        for kernel in result.kernels:
            yield {
                "case": case.slug,
                "phase": case.phase,
                "batch_size": case.batch_size,
                "isl": case.seq_len,
                "num_heads": case.num_heads,
                "dsa_dtype": case.dtype,
                "prefix": case.prefix,
                "timing": result.timing,
                "stage": kernel.stage,
                "kernel": kernel.name,
                "calls_per_iteration": f"{kernel.calls_per_iteration:g}",
                "latency": ms(kernel.median_ns),
                "p10_ms": ms(kernel.p10_ns),
                "p90_ms": ms(kernel.p90_ns),
            }


def step(case: Case) -> int:
    """The CSV's `step`: cached tokens in context, the one new token in generation."""
    return 1 if case.phase == "generation" else case.prefix


def ms(ns: float) -> str:
    """Nanoseconds as milliseconds, to the nanosecond."""
    return f"{ns / 1e6:.6f}"


def identity(session: Session) -> Identity:
    """Framework, version and device of a session. What was not recorded reads `unknown`.

    Rows of the kernels name the package that the kernels are of (`vllm_kernels`), not the
    framework, which did not run, and not PyTorch, whose version says nothing about them.
    """
    environment = session.environment
    if session.workload == "kernels":
        source = f"{environment.get('kernels_source') or 'unknown'}_kernels"
        about = str(environment.get("kernels_version") or "unknown")
        return Identity(source, about, device_name(session))
    framework, package = FRAMEWORKS.get(session.workload, ("PyTorch", "torch"))
    packages = environment.get("packages")
    version = environment.get(package) or (
        packages.get(package) if isinstance(packages, dict) else None
    )
    return Identity(framework, str(version or "unknown"), device_name(session))


def device_name(session: Session) -> str:
    """The first GPU's name where the session ran on one, else the CPU's."""
    gpus = session.environment.get("gpus") or []
    if session.settings.get("device") != "cpu" and gpus:
        first = gpus[0]
        return str(first.get("name", "unknown") if isinstance(first, dict) else first)
    return str(session.environment.get("cpu") or "unknown")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
