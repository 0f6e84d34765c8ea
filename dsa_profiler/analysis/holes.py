"""What a table lacks, and what the engine's answer then costs: head counts, points at top-k."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis import bracket
from dsa_profiler.analysis.curves import Curves
from dsa_profiler.analysis.subject import Finding, Subject, engine_sol

TENSOR_PARALLEL = (1, 2, 4, 8, 16)
NEAR = 0.05
"""A point within this share of top-k counts as one at top-k."""


def find(of: Subject, reference: pd.DataFrame | None) -> Iterable[Finding]:
    yield from _heads(of, reference)
    yield from _anchors(of)


def _heads(of: Subject, reference: pd.DataFrame | None) -> Iterable[Finding]:
    """Local head counts that a deployment asks for and the table lacks, with what that costs."""
    have = sorted(int(h) for h in of.frame["num_heads"].unique())
    whole = of.shape.num_attention_heads if of.shape else have[-1]
    for parallel in TENSOR_PARALLEL:
        heads = whole // parallel
        if heads in have or heads < 8:
            continue
        asked = None if reference is None else reference[reference["num_heads"] == heads]
        cost = "how wrong that is shows only against a table that has them (--against)"
        if asked is not None and len(asked):
            cost = _cost(of, asked)
        inside = have[0] < heads < have[-1]
        how = "on the line between its neighbours" if inside else "with the utilisation held"
        yield Finding(
            "heads-missing", "warning",
            f"{of.name}: no rows for {heads} local heads (tensor parallelism {parallel}); the "
            f"engine answers {how}: {cost}",
            f"profile --num-heads {heads}: kernels pad heads, so no rule of three gets there",
        )  # fmt: skip


def _cost(of: Subject, asked: pd.DataFrame) -> str:
    if of.shape is None or of.system is None:
        return "the device is unknown, so is the engine's speed of light"
    sols = [engine_sol(of.shape, of.system, rows, of.phase) for rows in (of.frame, asked)]
    answered = bracket.answer(of.frame, asked, "num_heads", *sols)
    error = answered.to_numpy(float) / asked["latency"].to_numpy(float) - 1
    error = error[~np.isnan(error)]
    if not len(error):
        return "no rows in common to tell how wrong"
    return (
        f"{np.median(error):+.0%} in the median, {error[np.argmax(np.abs(error))]:+.0%} at worst, "
        f"over {len(error)} rows of the reference"
    )


def _anchors(of: Subject) -> Iterable[Finding]:
    """Points on both sides of top-k: without them the engine draws its line across the step."""
    if of.shape is None:
        return
    top_k, lines = of.top_k, Curves.of(of.frame, of.sequence)
    prefix = 0 if of.phase == "generation" else lines.keys[["step"]].to_numpy(float)
    keys = np.broadcast_to(of.keys(lines.x[None, :], prefix), lines.latency.shape)
    known = ~np.isnan(lines.latency)
    low = np.where(known & (keys <= top_k), keys, -np.inf).max(axis=1)
    high = np.where(known & (keys > top_k), keys, np.inf).min(axis=1)
    across = np.isfinite(low) & np.isfinite(high)
    for side, end, far, severity in (
        ("below", low, across & (low < (1 - NEAR) * top_k), "warning"),
        ("above", high, across & (high > (1 + NEAR) * top_k), "note"),
    ):
        if far.any():
            error = _smear(lines, keys, far, top_k) if side == "below" else ""
            yield Finding(
                "anchor-missing", severity,  # type: ignore[arg-type]
                f"{of.name}: {int(far.sum())} of {int(across.sum())} curves have nothing close "
                f"{side} top-k at {top_k} keys (nearest: {end[far][0]:.0f}), so the engine draws "
                f"its line across the step{error}",
                f"add points around it: {of.around_top_k()}", int(far.sum()),
            )  # fmt: skip


def _smear(lines: Curves, keys: Any, far: Any, top_k: int) -> str:
    """How far the line across top-k is, at top-k itself, from the curve that ends below it."""
    wrong = []
    for i in np.flatnonzero(far):
        known = ~np.isnan(lines.latency[i])
        x, y = keys[i][known], lines.latency[i][known]
        b = int(np.flatnonzero(x <= top_k)[-1])
        if b == 0:
            continue
        line = y[b] + (y[b + 1] - y[b]) * (top_k - x[b]) / (x[b + 1] - x[b])
        own = y[b] + max(0.0, y[b] - y[b - 1]) * (top_k - x[b]) / (x[b] - x[b - 1])
        wrong.append(line / own - 1)
    if not wrong:
        return ""
    return f"; at {top_k} keys it answers {np.median(wrong):+.0%} off what the lower side says"
