"""What `align` found, as the JSON contract spells it. Times are ns, ratios standalone / e2e."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from dsa_profiler.errors import Warn

SCHEMA = 1
Verdict = Literal["pass", "fail", "inconclusive"]
CHECKS = ("kernel_names_match", "latency_within_tolerance", "no_missing_or_extra_kernels")


@dataclass(frozen=True, slots=True)
class Check:
    """One gate. `detail` is one line; `offenders` name what failed it."""

    name: str
    status: Verdict
    detail: str
    offenders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference and what to think of it.

    kind  missing, extra, renamed, forbidden or unseen (required, and on neither side).
    why   empty where nothing makes it legitimate.
    """

    kind: str
    stage: str
    kernel: str
    where: str
    why: str
    median_ns: float = 0.0


@dataclass(frozen=True, slots=True)
class Lane:
    """One kernel in a lane of the page: ns from the layer's first kernel, and its slot or -1."""

    kernel: str
    stage: str
    start_ns: int
    duration_ns: int
    stream: int
    slot: int


@dataclass(frozen=True, slots=True)
class RankRow:
    """One rank of the server: median sum of a layer's kernels, and how it compares.

    to_median  its sum / the median rank's; a straggler lies above 1.1.
    """

    rank: str
    layers: int
    sum_ns: float
    to_median: float
    straggler: bool


@dataclass(frozen=True, slots=True)
class Alignment:
    """A verdict with its evidence.

    pairs     rows of the slots, in order; `window` in them is a time range for Nsight.
    server    what is known of the server's steps and layers.
    explained differences that are legitimate, with the reason.
    """

    verdict: Verdict
    checks: tuple[Check, ...]
    server: dict[str, Any]
    stages: tuple[dict[str, Any], ...]
    pairs: tuple[dict[str, Any], ...]
    missing: tuple[Finding, ...]
    extra: tuple[Finding, ...]
    problems: tuple[Warn, ...] = ()
    reasons: tuple[dict[str, str], ...] = ()
    explained: tuple[Finding, ...] = ()
    flagged: tuple[Finding, ...] = ()
    unknown: tuple[str, ...] = ()
    totals: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: tuple[RankRow, ...] = ()
    lanes: dict[str, tuple[Lane, ...]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[Warn, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The document of `align --json`: the contract's keys first, then the evidence."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "checks": [
                {"name": c.name, "status": c.status, "detail": c.detail} for c in self.checks
            ],
            "e2e": self.server,
            "stages": list(self.stages),
            "pairs": list(self.pairs),
            "missing": [f.kernel for f in self.missing],
            "extra": [f.kernel for f in self.extra],
            "problems": [w.as_json() for w in self.problems],
            "reasons": list(self.reasons),
            "differences": [asdict(f) for f in (*self.missing, *self.extra, *self.flagged)],
            "explained": [asdict(f) for f in self.explained],
            "unknown_kernels": list(self.unknown),
            "totals": self.totals,
            "ranks": [asdict(r) for r in self.ranks],
            "lanes": {side: [asdict(k) for k in lane] for side, lane in self.lanes.items()},
            "settings": self.settings,
            "notes": [w.as_json() for w in self.notes],
        }


def finite(value: float) -> float | None:
    """JSON has no infinity: a ratio to nothing is null."""
    return round(value, 4) if math.isfinite(value) else None
