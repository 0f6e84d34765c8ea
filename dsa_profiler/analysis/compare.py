"""Two sessions side by side: what changed, by how much, and whether that is more than noise.

A ratio is B / A: above 1 is slower. Its interval is a percentile bootstrap of the ratio of medians
over the iterations (Efron and Tibshirani, 1993, chapter 13), 95 %, with a fixed seed: same input,
same numbers. A case's noise is how far its own A can be from itself under the same resampling, and
a change counts only where the interval leaves 1 out and the ratio leaves the noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from dsa_profiler.errors import InputError, Warn
from dsa_profiler.marks import STAGES
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, Results
from dsa_profiler.session import Session

SCHEMA = 1
RESAMPLES = 2000
LEAST_ITERATIONS = 3
"""Below this many iterations on either side there is no interval."""
LEAST_NOISE = 0.01
"""Never call anything below 1 % a change: clocks alone move that far."""
Verdict = Literal["same", "faster", "slower", "unsure"]


@dataclass(frozen=True, slots=True)
class StageChange:
    """One stage of one case; `ratio` is None where a side does not have the stage, `low` and
    `high` with too few iterations as well.
    """

    stage: str
    a_ns: float
    b_ns: float
    ratio: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class CaseChange:
    """One case on both sides. `low` and `high` are None with too few iterations."""

    case: Case
    a_ns: float
    b_ns: float
    ratio: float
    low: float | None
    high: float | None
    noise: float
    verdict: Verdict
    stages: tuple[StageChange, ...]

    def as_json(self) -> dict[str, Any]:
        rest = {k: v for k, v in asdict(self).items() if k != "case"}
        return {"id": self.case.slug, **self.case.as_json(), **rest}


@dataclass(frozen=True, slots=True)
class Mean:
    """Geometric mean of ratios over cases, with its 95 % bootstrap interval over the cases."""

    ratio: float
    low: float | None
    high: float | None
    cases: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All changes of the cases in common, in A's order."""

    a: str
    b: str
    cases: tuple[CaseChange, ...]
    total: Mean
    stages: tuple[tuple[str, Mean], ...]
    noise: float
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    warnings: tuple[Warn, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "noise": self.noise,
            "total": asdict(self.total),
            "stages": [{"stage": stage, **asdict(mean)} for stage, mean in self.stages],
            "cases": [c.as_json() for c in self.cases],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "warnings": [w.as_json() for w in self.warnings],
        }


def compare(
    a: Results, b: Results, session_a: Session | None = None, session_b: Session | None = None
) -> Comparison:
    """Compare the cases that both sides measured.

    Raises `InputError` where a comparison would mean nothing: no case in common, another model, or
    host times against GPU times. What makes it doubtful is a warning.
    """
    left = {c.case: c for c in a.cases}
    right = {c.case: c for c in b.cases}
    common = [c for c in left if c in right]
    _refuse(common, left, right, session_a, session_b)
    changes = tuple(_change(left[c], right[c], seed) for seed, c in enumerate(common))
    return Comparison(
        a=session_a.name if session_a else "A",
        b=session_b.name if session_b else "B",
        cases=changes,
        total=_mean([c.ratio for c in changes]),
        stages=tuple(_stage_means(changes)),
        noise=float(np.median([c.noise for c in changes])),
        only_a=tuple(c.slug for c in left if c not in right),
        only_b=tuple(c.slug for c in right if c not in left),
        warnings=tuple(_warnings(a, b, session_a, session_b, changes)),
    )


def _refuse(
    common: Sequence[Case],
    left: dict[Case, CaseResult],
    right: dict[Case, CaseResult],
    session_a: Session | None,
    session_b: Session | None,
) -> None:
    if not common:
        raise InputError(
            "compare-disjoint",
            f"no case in common: A has {len(left)} cases, B has {len(right)}",
            "compare sessions of the same grid",
        )
    if session_a and session_b:
        names = [f for f in session_a.model.as_json() if f not in ("name", "torch_dtype")]
        one, two = session_a.model.as_json(), session_b.model.as_json()
        other = [n for n in names if one[n] != two[n]]
        if other:
            raise InputError(
                "compare-models",
                f"A and B are different models: {', '.join(other[:4])} differ",
                "compare sessions of one model",
            )
    mixed = [c.slug for c in common if left[c].timing != right[c].timing]
    if mixed:
        raise InputError(
            "compare-timing",
            f"{mixed[0]} was timed on the {left[common[0]].timing} in A and not in B",
            "compare GPU times with GPU times, host times with host times",
        )


def _change(a: CaseResult, b: CaseResult, seed: int) -> CaseChange:
    rng = np.random.default_rng(seed)
    ratio = b.span_ns.median / a.span_ns.median if a.span_ns.median else 1.0
    low = high = None
    noise = LEAST_NOISE
    if min(len(a.iteration_spans_ns), len(b.iteration_spans_ns)) >= LEAST_ITERATIONS:
        medians_a = _medians(rng, a.iteration_spans_ns)
        low, high = _interval(medians_a, _medians(rng, b.iteration_spans_ns))
        off = np.abs(medians_a / np.median(np.asarray(a.iteration_spans_ns, float)) - 1)
        noise = max(LEAST_NOISE, float(np.percentile(off, 95)))
    return CaseChange(
        case=a.case,
        a_ns=a.span_ns.median,
        b_ns=b.span_ns.median,
        ratio=ratio,
        low=low,
        high=high,
        noise=noise,
        verdict=_verdict(ratio, low, high, noise),
        stages=tuple(_stages(a, b, rng)),
    )


def _medians(rng: np.random.Generator, samples: Sequence[int]) -> Any:
    values = np.asarray(samples, float)
    picks = rng.integers(0, len(values), (RESAMPLES, len(values)))
    return np.median(values[picks], axis=1)


def _verdict(ratio: float, low: float | None, high: float | None, noise: float) -> Verdict:
    if abs(ratio - 1) <= noise:
        return "same"
    if low is None or high is None:
        return "unsure"
    if low <= 1 <= high:
        return "same"
    return "slower" if ratio > 1 else "faster"


def _interval(medians_a: Any, medians_b: Any) -> tuple[float, float]:
    low, high = np.percentile(medians_b / medians_a, (2.5, 97.5))
    return float(low), float(high)


def _stages(a: CaseResult, b: CaseResult, rng: np.random.Generator) -> Iterable[StageChange]:
    left = {s.stage: s for s in a.stages}
    right = {s.stage: s for s in b.stages}
    for stage in STAGES:
        one, two = left.get(stage), right.get(stage)
        if one is None or two is None or not one.median_ns or not two.median_ns:
            if one is not None or two is not None:
                a_ns = one.median_ns if one else 0.0
                yield StageChange(stage, a_ns, two.median_ns if two else 0.0, None)
            continue
        low = high = None
        counts = len(one.iteration_ns), len(two.iteration_ns)
        if min(counts) >= LEAST_ITERATIONS and min(one.iteration_ns) > 0:
            low, high = _interval(_medians(rng, one.iteration_ns), _medians(rng, two.iteration_ns))
        ratio = two.median_ns / one.median_ns
        yield StageChange(stage, one.median_ns, two.median_ns, ratio, low, high)


def _stage_means(changes: Sequence[CaseChange]) -> Iterable[tuple[str, Mean]]:
    for stage in STAGES:
        ratios = [s.ratio for c in changes for s in c.stages if s.stage == stage and s.ratio]
        if ratios:
            yield stage, _mean(ratios)


def _mean(ratios: Sequence[float]) -> Mean:
    logs = np.log(np.asarray(ratios, float))
    low = high = None
    if len(logs) >= LEAST_ITERATIONS:
        rng = np.random.default_rng(len(logs))
        picks = rng.integers(0, len(logs), (RESAMPLES, len(logs)))
        means = np.exp(logs[picks].mean(axis=1))
        low, high = (float(v) for v in np.percentile(means, (2.5, 97.5)))
    return Mean(float(np.exp(logs.mean())), low, high, len(ratios))


def _warnings(
    a: Results,
    b: Results,
    session_a: Session | None,
    session_b: Session | None,
    changes: Sequence[CaseChange],
) -> Iterable[Warn]:
    yield from _differences("gpus", a.trace.gpus, b.trace.gpus)
    if session_a and session_b:
        for name in ("workload", "tracer", "tool_version"):
            yield from _differences(name, getattr(session_a, name), getattr(session_b, name))
        one, two = _facts(session_a), _facts(session_b)
        for name in dict.fromkeys([*one, *two]):
            yield from _differences(name, one.get(name), two.get(name))
    few = sum(c.low is None for c in changes)
    if few:
        yield Warn(
            "compare-few-iterations",
            f"{few} cases have fewer than {LEAST_ITERATIONS} iterations on a side: no interval",
            "record with more --iterations",
        )


def _facts(session: Session) -> dict[str, Any]:
    """The environment, flat; the driver of the first GPU stands for all of them."""
    out: dict[str, Any] = {}
    for name, value in session.environment.items():
        if name == "packages" and isinstance(value, dict):
            out |= value
        elif name == "gpus":
            first = value[0] if isinstance(value, list) and value else None
            out["driver"] = first.get("driver") if isinstance(first, dict) else None
        elif name != "tracer_choice":
            out[name] = value
    return out


def _differences(name: str, one: Any, two: Any) -> Iterable[Warn]:
    if one != two:
        yield Warn(
            "compare-environment",
            f"{name} differs: {_short(one)} in A, {_short(two)} in B",
            "a change may come from there",
        )


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_short, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_short(v)}" for k, v in value.items())
    return "none" if value is None else str(value)
