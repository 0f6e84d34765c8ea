"""Why a case takes as long as it does: against its floor, at twice the length, and in a spike.

Everything here is arithmetic on measured stages, floors and fits; the sentences are made from the
numbers and say which of them they rest on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dsa_profiler.analysis import roofline
from dsa_profiler.analysis.measured import SPIKE
from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.results import CaseResult, Floor


@dataclass(frozen=True, slots=True)
class StageLine:
    """One stage in ns: measured, floor, what lies between; `share` is floor over measured."""

    stage: str
    measured_ns: float
    floor_ns: float
    over_ns: float
    share: float | None
    bound: str


@dataclass(frozen=True, slots=True)
class Growth:
    """What twice the length adds to a stage, in ns. `source`: `measured` (a case of that length
    exists) or `floor` (measured time scaled as the stage's floor grows).
    """

    stage: str
    added_ns: float
    source: str


@dataclass(frozen=True, slots=True)
class Excess:
    """One stage's time above the mean of the two neighbours in length, in ns."""

    stage: str
    excess_ns: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of one case, in numbers; `sentences` in words."""

    case: Case
    span_ns: float
    floor: Floor
    gap_ns: float
    stages: tuple[StageLine, ...]
    growth: tuple[Growth, ...]
    spike: tuple[Excess, ...]
    spike_factor: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "id": self.case.slug,
            "span_ms": self.span_ns / 1e6,
            "floor_ms": self.floor.floor_ns / 1e6,
            "roofline_share": self.floor.floor_ns / self.span_ns,
            "gap_ms": self.gap_ns / 1e6,
            "stages": [asdict(s) for s in self.stages],
            "next_doubling": [asdict(g) for g in self.growth],
            "spike_factor": self.spike_factor,
            "spike": [asdict(e) for e in self.spike],
            "sentences": list(self.sentences()),
        }

    def sentences(self) -> tuple[str, ...]:
        floor = self.floor.floor_ns
        out = [
            f"{self.case.slug} takes {_ms(self.span_ns)}, {self.span_ns / floor:.1f} times its "
            f"floor of {_ms(floor)} on {self.floor.system} "
            f"({_ms(self.floor.useful_ns)} without padding)."
        ]
        top = sorted(self.stages, key=lambda s: -s.over_ns)[:3]
        where = ", ".join(f"{s.stage} {_ms(s.over_ns)}" for s in top if s.over_ns > 0)
        if where:
            out.append(f"Above the floor: {where}.")
        if self.gap_ns > 0.05 * self.span_ns:
            out.append(
                f"Between kernels nothing runs for {_ms(self.gap_ns)} "
                f"({100 * self.gap_ns / self.span_ns:.0f} %): launches, not arithmetic."
            )
        if self.growth:
            first = self.growth[0]
            how = "measured" if first.source == "measured" else "if it grows as its floor does"
            out.append(
                f"Twice the length adds most to {first.stage}: {_ms(first.added_ns)}, {how}."
            )
        if self.spike_factor is not None:
            parts = ", ".join(f"{e.stage} {_ms(e.excess_ns)}" for e in self.spike[:3])
            out.append(
                f"It is a spike, {self.spike_factor:.2f} times its longer neighbour"
                + (f"; above both neighbours' mean: {parts}." if parts else ".")
            )
        return tuple(out)


def explain(
    case: Case,
    measured: Sequence[CaseResult],
    shape: ModelShape,
    system: System,
    gemm: Gemm = "bfloat16",
) -> Explanation:
    """Explain `case` from the measured cases, of which it is one."""
    rows = {r.case: r for r in measured}
    row = rows.get(case)
    if row is None:
        near = min(rows, key=lambda c: _apart(c, case), default=None)
        raise InputError(
            "case-not-measured",
            f"{case.slug} was not measured",
            f"the nearest case is {near.slug}" if near else "give a session with cases",
        )
    if row.timing != "gpu":
        raise InputError(
            "case-host-timed",
            f"{case.slug} was timed on the host: no floor of a GPU applies to it",
            "record it on a GPU",
        )
    floor = roofline.floor(shape, case, system, gemm)
    shorter, longer = _neighbours(rows, case)
    factor, spike = _spike(row, shorter, longer)
    twice = _like(case, 2 * case.seq_len + (1 if case.phase == "generation" else 0))
    doubled = rows.get(twice) or rows.get(_like(case, 2 * case.seq_len))
    growth = _growth(row, floor, roofline.floor(shape, twice, system, gemm), doubled)
    return Explanation(
        case, row.span_ns.median, floor, row.gap_ns, _lines(row, floor), growth, spike, factor
    )


def _lines(row: CaseResult, floor: Floor) -> tuple[StageLine, ...]:
    found = {s.stage: s for s in floor.stages}
    lines = []
    for stage in row.stages:
        least = found.get(stage.stage)
        ns = least.floor_ns if least else 0.0
        share = ns / stage.median_ns if least and stage.median_ns > 0 else None
        over = stage.median_ns - ns
        lines.append(
            StageLine(stage.stage, stage.median_ns, ns, over, share, least.bound if least else "")
        )
    return tuple(sorted(lines, key=lambda s: (-s.measured_ns, s.stage)))


def _growth(
    row: CaseResult, floor: Floor, twice: Floor, doubled: CaseResult | None
) -> tuple[Growth, ...]:
    out = []
    longer = {s.stage: s.median_ns for s in doubled.stages} if doubled else {}
    for stage in row.stages:
        now, then = floor.stage_ns(stage.stage), twice.stage_ns(stage.stage)
        if doubled is not None:
            added, source = longer.get(stage.stage, 0.0) - stage.median_ns, "measured"
        elif now and then:
            added, source = stage.median_ns * (then / now - 1), "floor"
        else:
            continue
        out.append(Growth(stage.stage, added, source))
    return tuple(sorted(out, key=lambda g: (-g.added_ns, g.stage)))


def _spike(
    row: CaseResult, shorter: CaseResult | None, longer: CaseResult | None
) -> tuple[float | None, tuple[Excess, ...]]:
    """How far above both neighbours, and in which stages; nothing where it is not."""
    if shorter is None or longer is None:
        return None, ()
    span = row.span_ns.median
    if span <= SPIKE * max(shorter.span_ns.median, longer.span_ns.median):
        return None, ()
    sides = [{s.stage: s.median_ns for s in r.stages} for r in (shorter, longer)]
    excess = [
        Excess(s.stage, s.median_ns - sum(side.get(s.stage, 0.0) for side in sides) / 2)
        for s in row.stages
    ]
    kept = sorted((e for e in excess if e.excess_ns > 0), key=lambda e: (-e.excess_ns, e.stage))
    return span / longer.span_ns.median, tuple(kept)


def _neighbours(
    rows: dict[Case, CaseResult], case: Case
) -> tuple[CaseResult | None, CaseResult | None]:
    """The next shorter and the next longer case, all else equal."""
    line = {c.seq_len: r for c, r in rows.items() if _like(c, case.seq_len) == case}
    below = [n for n in line if n < case.seq_len]
    above = [n for n in line if n > case.seq_len]
    return (line[max(below)] if below else None), (line[min(above)] if above else None)


def _like(case: Case, seq_len: int) -> Case:
    return Case(case.phase, case.batch_size, seq_len, case.num_heads, case.dtype, case.prefix)


def _apart(a: Case, b: Case) -> tuple[Any, ...]:
    return (
        a.phase != b.phase,
        a.dtype != b.dtype,
        abs(a.num_heads - b.num_heads),
        abs(a.batch_size - b.batch_size),
        abs(a.seq_len - b.seq_len),
        a.slug,
    )


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.3g} ms"
