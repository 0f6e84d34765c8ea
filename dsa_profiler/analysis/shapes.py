"""Spikes, knees and drops of a table's curves, told with their kernels where those are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from dsa_profiler.analysis import curves
from dsa_profiler.analysis.curves import Curves, Place
from dsa_profiler.analysis.subject import Cell, Finding, Subject

AXES = ("num_heads", "batch_size", "isl", "step")


def find(of: Subject) -> Iterable[Finding]:
    """Spikes and knees along sequence and batch, drops along these and heads."""
    for axis in (of.sequence, "batch_size", "num_heads"):
        lines = Curves.of(of.frame, axis)
        peaks = curves.spikes(lines)
        shared = [p for p in peaks if p.curves >= max(2, curves.SHARED * p.of)]
        alone = [p for p in peaks if p not in shared]
        if axis == "num_heads":
            shared, alone = [], peaks
        yield from (_spike(of, p) for p in shared)
        if axis != "num_heads":
            foothills = {p.after for p in shared}
            yield from (_knee(of, p) for p in curves.knees(lines) if p.at not in foothills)
        yield from _scattered(of, True, alone, axis)
        yield from _scattered(of, False, curves.drops(lines), axis)


def _spike(of: Subject, place: Place) -> Finding:
    at_top_k = place.axis == of.sequence and of.keys(place.at) == of.top_k + 1
    reason = ", the first point at which top-k selects" if at_top_k else ""
    cure = _kernels(of, place)
    if not cure and at_top_k:
        cure = (
            "to explain it: a per-kernel profile on both sides, `dsa-profiler run --mode "
            f"{of.phase} --batch-sizes 64 --seq-lens {of.around_top_k()}`, with random weights and "
            "with a server's scores: near-equal scores are the worst case of top-k"
        )
    elif not cure:
        cure = f"measure again; if it stays, profile {place.before}, {place.at} and {place.after}"
    return Finding(
        "spike", "warning",
        f"{of.name}: spike at {_where(of, place)}{reason}: {place.curves} of {place.of} curves lie "
        f"{place.ratio:.2f} x above both neighbours, {place.excess_ms:.3f} ms above the line "
        f"between them (worst: {place.worst}, {place.worst_ms:.4g} ms)",
        cure, place.curves,
    )  # fmt: skip


def _knee(of: Subject, place: Place) -> Finding:
    return Finding(
        "knee", "note",
        f"{of.name}: knee at {_where(of, place)}: the exponent grows by {place.ratio:.1f} in "
        f"{place.curves} of {place.of} curves",
        _kernels(of, replace(place, before=place.at, at=place.after))
        or "keep points close by on both sides; a line across it is wrong",
        place.curves,
    )  # fmt: skip


def _scattered(of: Subject, peaks: bool, places: Sequence[Place], axis: str) -> Iterable[Finding]:
    """Points out of line that no other curve shares, as one finding an axis."""
    count = sum(p.curves for p in places)
    if count:
        worst = max(places, key=lambda p: p.ratio)
        yield Finding(
            "spike-scattered" if peaks else "not-monotone", "warning",
            f"{of.name}: {'peaks' if peaks else 'less time for more work'} along {axis} at {count} "
            f"of {sum(p.of for p in places)} points, up to {worst.ratio:.2f} x ({worst.worst})",
            "measure those again with more iterations; a line between them carries the noise on",
            count,
        )  # fmt: skip


def _kernels(of: Subject, place: Place) -> str:
    """The kernels that grew most from the point before to this one, where both were profiled."""
    grew: dict[str, list[float]] = {}
    axis = AXES.index(place.axis)
    for key, here in of.kernels.items():
        before: Cell = (*key[:axis], place.before, *key[axis + 1 :])  # type: ignore[assignment]
        earlier = of.kernels.get(before)
        if key[axis] != place.at or earlier is None:
            continue
        old = {k.name: k.median_ns for k in earlier.kernels}
        for kernel in here.kernels:
            grew.setdefault(kernel.name, []).append(kernel.median_ns - old.get(kernel.name, 0.0))
    ranked = sorted(((float(np.median(v)), n) for n, v in grew.items()), reverse=True)[:3]
    named = [f"{name[:60]} {ns / 1e6:+.3f} ms" for ns, name in ranked if ns > 0]
    return f"from {place.before} to {place.at} grow: {', '.join(named)}" if named else ""


def _where(of: Subject, place: Place) -> str:
    if place.axis == "batch_size":
        return f"batch {place.at}"
    return f"kv {of.keys(place.at)}" if of.phase == "generation" else f"isl {place.at}"
