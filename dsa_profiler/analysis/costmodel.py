"""A cost model of one phase of a layer: physics, a smooth residual, and an honest interval.

    latency = physics x exp(residual surface)

Physics is a non-negative sum of terms (`terms`): fitted to the whole module where only module
latencies exist, stage by stage and added up where there is a breakdown. It carries the knees and
the far field; the surface (`residual`) carries what this device does differently and fades to
nothing far from the rows, so that nothing is extrapolated but the physics.

Every prediction says why it may be trusted: `inside` (a measured shape), `between` (measured
shapes around it) or `beyond` (so many doublings past the last). Intervals are meant to hold nine in
ten new measurements. They are set by rows that a fit did not see: a fifth at a time inside, the
last length and the last batch size for beyond, every second head count for heads never measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dsa_profiler.analysis import hull, measured, residual, terms
from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.analysis.systems import Gemm, System
from dsa_profiler.analysis.terms import Layer
from dsa_profiler.errors import InputError
from dsa_profiler.model import ModelShape

COVERAGE = 0.94
"""Quantile of the errors that sets a width: nine in ten and a margin, since the rows that measure
it are left out of the surface but not of the physics.
"""
REASONS = ("inside", "between", "beyond")
UNCHECKED = 0.08
"""Half-width added where the rows are too few to measure it: heads with no third count to check."""
CREDIT, CAUTION = 0.03, 2.0
"""Half-width a doubling beyond the rows: at least CREDIT, and CAUTION times what the last measured
doubling would have needed, because the next one stands further out.
"""
FOLDS = 5


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Columns, one entry a case. `reason` indexes REASONS, `steps` counts doublings past rows."""

    ns: Any
    low_ns: Any
    high_ns: Any
    reason: Any
    steps: Any


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Physics and surface, without an interval. `weights` are ns a unit of each term of `form`."""

    layer: Layer
    form: tuple[str, ...]
    weights: Any
    surface: residual.Surface
    stages: Mapping[str, Fit]
    always: frozenset[str] = frozenset()
    """Stages that run at or below top-k too; the others are absent there."""

    def physics(self, at: Points) -> Any:
        """The sum of the terms, or of the stages where they were measured, in ns."""
        if not self.stages:
            return terms.table(self.form, self.layer, at) @ self.weights
        return sum(self.by_stage(at).values())

    def by_stage(self, at: Points) -> dict[str, Any]:
        """Stage to ns; empty for a model of module latencies."""
        on = terms.past(at, self.layer.shape.index_topk)
        return {
            stage: fit.latency(at) * (1.0 if stage in self.always else on)
            for stage, fit in self.stages.items()
        }

    def latency(self, at: Points, where: dict[str, Any] | None = None) -> Any:
        """The central prediction in ns. `where`: the axes of `at`, if they are there already."""
        where = where or residual.axes(at, self.layer.shape.index_topk)
        return self.physics(at) * np.exp(self.surface.at(where))


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A fit with the rows it knows, the spikes it left out, and the width of its intervals.

    Half-widths are logarithms: `width` times the local scatter, plus `growth` a doubling beyond the
    rows (in batch size, in length), plus `heads_width` at a head count that was not measured and
    CREDIT a doubling past the measured ones.
    """

    fit: Fit
    rows: Rows
    spikes: Rows
    scatter: residual.Average
    width: float
    growth: tuple[float, float]
    heads_width: float

    def predict(self, at: Points) -> Prediction:
        """Predictions for `at`, in its order. Between two grid lines a prediction never leaves the
        span of its cell's corners, which themselves do not fall with batch or length by noise.
        """
        _known_heads(self.rows, at)
        top_k = self.fit.layer.shape.index_topk
        low, high = hull.brackets(self.rows.at, at, top_k, self.fit.latency)
        centre, width = np.empty(len(at)), np.empty(len(at))
        for part in _slices(len(at)):
            where = residual.axes(at[part], top_k)
            centre[part] = self.fit.latency(at[part], where)
            width[part] = self.width * self.scatter.at(where)
        ns = np.clip(centre, low, high)
        past = hull.distance(self.rows.at, at)
        steps = past.sum(axis=1)
        new_heads = ~np.isin(at.heads, self.rows.at.heads)
        half = width + past @ np.array([*self.growth, CREDIT]) + self.heads_width * new_heads
        reason = np.where(steps > 0, 2, np.where(hull.measured(self.rows.at, at), 0, 1))
        return Prediction(ns, ns * np.exp(-half), ns * np.exp(half), reason, steps)

    def by_stage(self, at: Points) -> dict[str, Any]:
        """Stage to ns, where the rows had a breakdown."""
        return self.fit.by_stage(at)


def fit(shape: ModelShape, system: System, rows: Rows, gemm: Gemm = "bfloat16") -> Model:
    """A model of one phase from measured rows; from their stages, where they have any.

    `gemm` is the precision of the projections' weights; the cache's is the rows' own. Spikes are
    left out of the fit and kept by name in `spikes`.
    """
    spiked = measured.spikes(rows)
    kept = rows[~spiked]
    base = _fit(Layer(shape, system, gemm, kept.dtype), kept)
    where = residual.axes(kept.at, shape.index_topk)
    off = _off_inside(base, kept)
    scatter = residual.average(where, off)
    width = _quantile(off / scatter.at(where))
    model = Model(base, kept, rows[spiked], scatter, width, (0.0, 0.0), 0.0)
    growth = (_growth(model, "batch"), _growth(model, "seq"))
    return replace(model, growth=growth, heads_width=_heads_width(model))


def _fit(layer: Layer, rows: Rows) -> Fit:
    where = residual.axes(rows.at, layer.shape.index_topk)
    stages, always = _stage_fits(layer, rows)
    weights: Any = ()
    if not stages:
        matrix = terms.table(terms.MODULE, layer, rows.at)
        weights = terms.weigh(terms.MODULE, matrix, rows.ns)
    plain = Fit(layer, terms.MODULE, weights, residual.FLAT, stages, always)
    return replace(plain, surface=residual.smooth(where, _log_ratio(rows, plain)))


def _stage_fits(layer: Layer, rows: Rows) -> tuple[dict[str, Fit], frozenset[str]]:
    """A fit for each stage that ran often enough to have one."""
    top_k = layer.shape.index_topk
    short = terms.past(rows.at, top_k) == 0
    stages: dict[str, Fit] = {}
    for name in rows.stages:
        ran = rows.stage(name)
        if len(ran) < 3:
            continue
        form = terms.form_of(name)
        weights = terms.weigh(form, terms.table(form, layer, ran.at), ran.ns)
        where = residual.axes(ran.at, top_k)
        plain = Fit(layer, form, weights, residual.FLAT, {})
        surface = residual.smooth(where, _log_ratio(ran, plain))
        stages[name] = replace(plain, surface=surface)
    always = {s for s in stages if not short.any() or (rows.stages[s][short] > 0).any()}
    return stages, frozenset(always)


def _log_ratio(rows: Rows, plain: Fit) -> Any:
    """log(measured / physics); physics is kept from vanishing where no term reaches a row."""
    return np.log(rows.ns / np.maximum(plain.physics(rows.at), 1e-3 * rows.ns))


def _off_inside(base: Fit, rows: Rows) -> Any:
    """|log error| at every row of a surface that did not see its fold.

    Folds are dealt along the sorted rows, so that a row's neighbours in batch stay.
    """
    ratio = _log_ratio(rows, base)
    fold = (np.arange(len(rows)) * 2) % FOLDS
    off = np.zeros(len(rows))
    for number in range(FOLDS):
        held = fold == number
        off[held] = np.abs(ratio[held] - residual.without(base.surface, ratio, held))
    return off


def _growth(model: Model, axis: str) -> float:
    """Extra half-width a doubling beyond the rows, from the last of every line left out."""
    edge = hull.edge(model.rows.at, axis)
    seen, held = model.rows[~edge], model.rows[edge]
    if len(seen) < 8 or min(len(np.unique(x)) for x in (seen.at.batch, seen.at.seq)) < 2:
        return UNCHECKED
    steps = hull.distance(seen.at, held.at).sum(axis=1)
    held, steps = held[steps > 0], steps[steps > 0]
    if len(held) < 3:
        return UNCHECKED
    return CREDIT + CAUTION * max(0.0, _quantile(_excess(model, seen, held) / steps))


def _heads_width(model: Model) -> float:
    """Extra half-width at a head count never measured, from every second one left out."""
    heads = np.unique(model.rows.at.heads)
    if len(heads) < 3:
        return UNCHECKED
    out = np.isin(model.rows.at.heads, heads[1:-1][::2])
    if (~out).sum() < 8:
        return UNCHECKED
    return max(0.0, _quantile(_excess(model, model.rows[~out], model.rows[out])))


def _excess(model: Model, seen: Rows, held: Rows) -> Any:
    """How far rows lie outside the inner interval of a fit that did not see them."""
    fit = _fit(model.fit.layer, seen)
    where = residual.axes(held.at, model.fit.layer.shape.index_topk)
    off = np.abs(np.log(held.ns / fit.latency(held.at)))
    return off - model.width * model.scatter.at(where)


def _quantile(values: Any) -> float:
    """The COVERAGE quantile with the finite-sample correction of split conformal intervals."""
    level = min(1.0, COVERAGE * (1 + 1 / len(values)))
    return float(np.quantile(values, level))


def _known_heads(rows: Rows, at: Points) -> None:
    heads = np.unique(rows.at.heads)
    new = np.setdiff1d(at.heads, heads)
    if len(heads) == 1 and len(new):
        raise InputError(
            "heads-unknown",
            f"rows of {heads[0]:g} heads alone say nothing about {new[0]:g}",
            "measure a second head count, best of another padding (64 and 128, say)",
        )


def _slices(count: int, size: int = 512) -> list[slice]:
    """Pieces whose kernels fit the cache."""
    return [slice(i, i + size) for i in range(0, count, size)]
