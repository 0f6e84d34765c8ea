"""The steps joined: a raw recording to a trace of the session, a trace or a session to results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dsa_profiler import marks, session
from dsa_profiler.errors import EnvironmentFault, InputError, Warn
from dsa_profiler.model import Case

if TYPE_CHECKING:
    from dsa_profiler.analysis.breakdown import Part
    from dsa_profiler.columns import Trace
    from dsa_profiler.results import CaseResult, Results

OVERHEAD = 0.03
"""A traced case that differs by more than this share from itself untraced is told."""
CUT = ("ranges-truncated", "marks-astray", "case-empty")
"""Warnings of a recording that was cut short. In a session its cases are recorded again or have an
outcome that says why not, so these would tell of nothing that the results lack.
"""


def finish(raw: Path, target: Path, expected: Mapping[Case, int]) -> frozenset[Case]:
    """Make `target`, a trace in nsys' schema without secrets, from the recording `raw`.

    Returns the cases of `expected` (case -> iterations) whose every iteration mark is there, whole.
    A recording without any mark of ours, or with domains but no ranges, is raised as
    EnvironmentFault, since the next one would hold none either.
    """
    from dsa_profiler.trace import reader, scrub

    trace = reader.read(raw)
    counted = iterations(trace)
    if not counted:
        raise _no_marks(trace)
    scrub.scrub(raw, target)
    return frozenset(case for case, least in expected.items() if counted.get(case.slug, 0) >= least)


def iterations(trace: Trace) -> dict[str, int]:
    """Whole iteration marks inside each whole case mark of a trace, by slug."""
    ranges = trace.ranges
    ours = {i: m for i, text in trace.strings.items() if (m := marks.parse(text)) is not None}
    cases: list[tuple[int, int, int, str]] = []
    rounds: list[tuple[int, int, int]] = []
    columns = (ranges.text, ranges.thread, ranges.start, ranges.end, ranges.truncated)
    for text, thread, start, end, cut in zip(*(c.tolist() for c in columns), strict=True):
        mark = ours.get(text)
        if mark is None or cut:
            continue
        if mark.kind == "case":
            cases.append((thread, start, end, mark.value))
        elif mark.kind == "iter":
            rounds.append((thread, start, end))
    counted = {slug: 0 for *_, slug in cases}
    for thread, start, end, slug in cases:
        counted[slug] += sum(t == thread and start <= s and e <= end for t, s, e in rounds)
    return counted


def _no_marks(trace: Trace) -> EnvironmentFault:
    if trace.info.domains_without_ranges:
        return EnvironmentFault(
            "marks-lost",
            "the profiler recorded NVTX domains but no ranges: every mark was lost",
            "install nvtx==0.2.10 (0.2.12 and later record nothing under nsys up to 2023.4), "
            "or record with --tracer torch",
        )
    return EnvironmentFault(
        "marks-lost",
        "the recording holds none of the marks of its cases",
        "see the chunk's log.txt; record with --tracer torch if nsys cannot trace NVTX here",
    )


def analyze(path: Path) -> Results:
    """The results of one trace file, a parquetdir export, or a session's folder.

    Of a session, the traces of all chunks become one: cases in the order of the plan, totals
    summed. A case counts where its outcome says it was finished, and from that chunk alone.
    """
    from dsa_profiler.analysis import breakdown
    from dsa_profiler.trace import reader

    if path.is_dir() and (path / session.MANIFEST).exists():
        return _analyze_session(path, session.load(path))
    return breakdown.analyze(reader.read(path))


def _analyze_session(folder: Path, manifest: session.Session) -> Results:
    from dsa_profiler.analysis import breakdown

    warnings = [*_outcome_warnings(manifest), *_workload_warnings(manifest)]
    parts: list[Part] = []
    found: dict[Case, CaseResult] = {}
    for chunk in manifest.chunks:
        if not chunk.trace:
            continue
        try:
            part = _read_part(folder / chunk.trace)
        except InputError as error:
            warnings.append(Warn("chunk-unreadable", f"chunk {chunk.name}: {error.what}"))
            continue
        parts.append(part)
        for result in part.cases:
            outcome = manifest.outcomes.get(result.case)
            if outcome and outcome.status == "done" and outcome.chunk in ("", chunk.name):
                known = _with_overhead(result, outcome.untraced_ns)
                found[result.case] = _with_gpu(known, outcome.gpu)
    if not parts:
        raise InputError(
            "session-empty",
            f"the session {manifest.name} holds no trace that can be read",
            "resume it with run, or read the log.txt of its chunks",
        )
    joined = breakdown.join(parts)
    cases = tuple(found[c] for c in manifest.plan.cases if c in found)
    told = (*(w for w in joined.warnings if w.slug not in CUT), *warnings)
    whole = replace(joined, cases=cases, warnings=told)
    return _with_floors(whole, manifest)


def _with_floors(results: Results, manifest: session.Session) -> Results:
    """Each case with its roofline, where all of them ran on one GPU whose rates are known."""
    from dsa_profiler.analysis import roofline, systems

    known = {systems.of_device(name) for name in results.trace.gpus}
    system = known.pop() if len(known) == 1 else None
    if system is None:
        return results
    gemm = systems.gemm_of(str(manifest.settings.get("gemm_type", "bfloat16")))
    return roofline.attach(results, manifest.model, system, gemm)


def _read_part(path: Path) -> Part:
    from dsa_profiler.analysis import breakdown
    from dsa_profiler.trace import reader

    return breakdown.part(reader.read(path))


def _outcome_warnings(manifest: session.Session) -> list[Warn]:
    out = [
        Warn(
            f"case-{o.status}", f"{case.slug}: {o.status}" + (f" ({o.detail})" if o.detail else "")
        )
        for case in manifest.plan.cases
        if (o := manifest.outcomes.get(case)) is not None and o.status != "done"
    ]
    out += [
        Warn(
            "case-unsettled", f"{case.slug}: {o.detail}", "give more --budget, or a quieter machine"
        )
        for case in manifest.plan.cases
        if (o := manifest.outcomes.get(case)) is not None and o.status == "done" and o.detail
    ]
    for chunk in manifest.chunks:
        told = {r for c in chunk.cases for r in _throttled(manifest, c)}
        if reasons := ", ".join(r for r in chunk.gpu.get("throttled", ()) if r not in told):
            out.append(_slowed(f"chunk {chunk.name}: the GPU slowed itself down ({reasons})"))
        if others := chunk.gpu.get("others"):
            what = f"chunk {chunk.name}: {others} other processes ran on the GPU"
            out.append(Warn("gpu-shared", what, "record on a GPU that nobody else uses"))
    pending = len(manifest.pending())
    if pending:
        cure = "run the same session again: it goes on where it stopped"
        out.append(Warn("cases-pending", f"{pending} cases of the plan are not recorded", cure))
    return out


def _workload_warnings(manifest: session.Session) -> list[Warn]:
    """What the workload says of itself that a reader of its stages must know."""
    about = manifest.environment
    who = (
        f"{about.get('framework', manifest.workload)} {about.get('framework_version', '')}".strip()
    )
    out = []
    if stages := about.get("unmarked_stages"):
        what = f"{who} has no place for the marks of {', '.join(stages)}"
        cure = "their kernels are told by name and order; report it with doctor --contract"
        out.append(Warn("stages-unmarked", what, cure))
    if about.get("hadamard") == "left out":
        what = f"{who} left its Hadamard rotation out: fast_hadamard_transform is not installed"
        cure = "install it where the server to compare with has it"
        out.append(Warn("hadamard-missing", what, cure))
    return out


def _throttled(manifest: session.Session, case: Case) -> tuple[str, ...]:
    outcome = manifest.outcomes.get(case)
    return outcome.gpu.throttled if outcome and outcome.gpu else ()


def _slowed(what: str) -> Warn:
    return Warn("gpu-throttled", what, "cool it, raise its power cap, or lock its clocks")


def _with_gpu(result: CaseResult, state: session.GpuState | None) -> CaseResult:
    """The GPU's state while the case was timed, and what it makes doubtful."""
    if state is None:
        return result
    warnings = result.warnings
    if state.throttled:
        what = f"the GPU slowed itself down while it was timed ({', '.join(state.throttled)})"
        warnings = (*warnings, _slowed(what))
    if state.why:
        cure = "give a longer --power, and leave the GPU to this run"
        warnings = (*warnings, Warn("power-unmeasured", f"no power: {state.why}", cure))
    return replace(result, warnings=warnings, gpu=state)


def _with_overhead(result: CaseResult, untraced_ns: float | None) -> CaseResult:
    """Warn where the traced span is not what the same case took without a tracer."""
    if not untraced_ns:
        return result
    change = result.span_ns.median / untraced_ns - 1
    if abs(change) <= OVERHEAD:
        return result
    told = Warn(
        "tracing-overhead",
        f"the traced span of {result.span_ns.median / 1e6:.3f} ms is {change:+.1%} against "
        f"{untraced_ns / 1e6:.3f} ms untraced",
        "compare shares rather than absolute times",
    )
    return replace(result, warnings=(*result.warnings, told))
