"""What physics leaves over: a smooth surface over batch, length, heads and prefix.

Gaussian-process regression on the logarithm of measured over physical latency. The kernel is a sum
of components; a component is a product of exp(-distance / length) over axes (logarithms, so one
unit is a doubling). On a grid such a product is a Kronecker product: the equations are solved by
conjugate gradients with two small matrix products a step and component. Outliers are weighed down
(each row has its own noise), not averaged in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from dsa_profiler.analysis.roofline import Points

NOISE = 0.02
"""Assumed noise of one row, relative: two campaigns of the same shapes differ by about that."""
OUTLIER = 1.5
"""Beyond this many times NOISE a row's weight goes down."""
REGIME = 8.0
"""Extra distance, in doublings, across top-k: residuals of the two sides have little in common."""

KERNEL: tuple[tuple[float, dict[str, float]], ...] = (
    (0.08, {"seq": 3.0, "batch": 4.0, "heads": 6.0, "prefix": 8.0}),
    (0.10, {"seq": 20.0, "batch": 8.0, "heads": 8.0, "prefix": 20.0}),
    (0.08, {"tokens": 6.0, "heads": 6.0, "prefix": 20.0}),
)
"""(standard deviation, length by axis): a local surface, effects that hold for a whole batch size,
and effects of the number of tokens alone (tile choices of the products)."""


NEAR = {"seq": 1.5, "batch": 2.0, "heads": 3.0, "prefix": 8.0}
"""Lengths over which rows share their scatter."""


def axes(at: Points, top_k: int) -> dict[str, Any]:
    """Coordinates of the cases in doublings."""
    keys = at.before + at.rows
    return {
        "seq": np.log2(at.seq) + REGIME * (keys > top_k),
        "batch": np.log2(at.batch),
        "heads": np.log2(at.heads),
        "prefix": np.log2(at.prefix / 128.0 + 1.0),
        "tokens": np.log2(at.tokens),
    }


def _decay(a: Any, b: Any, length: float) -> Any:
    """exp(-|a - b| / length) by outer products: exponentials of vectors, not of a matrix."""
    up, down = np.exp(a / length)[:, None], np.exp(-b / length)[None, :]
    return np.minimum(up * down, (1 / up) * (1 / down))


def _few(values: Any) -> Any:
    """Coordinates, to a sixteenth of a doubling where rows lie on no grid: a small lattice."""
    return values if len(np.unique(values)) <= 64 else np.round(values * 16) / 16


@dataclass(frozen=True, slots=True, eq=False)
class _Component:
    """One product kernel on the lattice of the rows' distinct coordinates.

    The lattice is a matrix: the axes before `cut` make its rows, the others its columns, and the
    kernel acts on it as `left @ field @ right`.
    """

    variance: float
    lengths: dict[str, float]
    values: tuple[Any, ...]
    cut: int
    index: Any
    left: Any
    right: Any

    @classmethod
    def on(cls, sigma: float, lengths: dict[str, float], where: dict[str, Any]) -> _Component:
        values, index = [], np.zeros(len(where["seq"]), np.int64)
        for axis in lengths:
            level, place = np.unique(_few(where[axis]), return_inverse=True)
            values.append(level)
            index = index * len(level) + place.reshape(-1)
        parts = [_decay(v, v, n) for v, n in zip(values, lengths.values(), strict=True)]
        sizes = [len(v) for v in values]
        cuts = range(1, len(sizes))
        cut = min(cuts, key=lambda c: int(np.prod(sizes[:c]) + np.prod(sizes[c:])))
        left, right = reduce(np.kron, parts[:cut]), reduce(np.kron, parts[cut:])
        return cls(sigma**2, lengths, tuple(values), cut, index, left, right)

    def lattice(self, rows: Any) -> Any:
        """Sums of `rows` on the lattice, as a matrix."""
        shape = (len(self.left), len(self.right))
        return np.bincount(self.index, rows, minlength=shape[0] * shape[1]).reshape(shape)

    def among(self, rows: Any) -> Any:
        """Kernel between the rows themselves, times `rows`."""
        field = self.left @ self.lattice(rows) @ self.right
        return self.variance * field.reshape(-1)[self.index]

    def towards(self, where: dict[str, Any], *fields: Any) -> list[Any]:
        """Kernel between other cases and the lattice, times each of `fields` on the lattice."""
        parts = [
            _decay(where[axis], v, n)
            for (axis, n), v in zip(self.lengths.items(), self.values, strict=True)
        ]
        left, right = reduce(_outer, parts[: self.cut]), reduce(_outer, parts[self.cut :])
        return [self.variance * np.einsum("qr,qr->q", left @ f, right) for f in fields]


def _outer(a: Any, b: Any) -> Any:
    """Products of every column of `a` with every column of `b`, row by row."""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A fitted residual surface. `weights` solves (kernel + noise) weights = residuals."""

    components: tuple[_Component, ...]
    weights: Any
    noise: Any

    def at(self, where: dict[str, Any]) -> Any:
        """The surface at other cases."""
        fields = [c.lattice(self.weights) for c in self.components]
        return sum(c.towards(where, f)[0] for c, f in zip(self.components, fields, strict=True))

    def here(self) -> Any:
        """The surface at the rows it was fitted to."""
        return sum(c.among(self.weights) for c in self.components)


FLAT = Surface((), np.zeros(0), np.zeros(0))
"""No residual at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """A local mean of positive numbers, drawn to their median where rows are few."""

    component: _Component
    values: Any
    usual: float

    def at(self, where: dict[str, Any]) -> Any:
        rows = (self.values, np.ones_like(self.values))
        total, count = self.component.towards(where, *map(self.component.lattice, rows))
        return (total + self.usual) / (count + 1.0)


def average(where: dict[str, Any], values: Any) -> Average:
    """The local mean of `values` given at `where`."""
    return Average(_Component.on(1.0, NEAR, where), values, float(np.median(values)) + 1e-4)


def smooth(where: dict[str, Any], residuals: Any, rounds: int = 3) -> Surface:
    """The surface through noisy `residuals`; each round weighs the last one's outliers down."""
    components = tuple(_Component.on(s, lengths, where) for s, lengths in KERNEL)
    noise = np.full(len(residuals), NOISE**2)
    weights = np.zeros(len(residuals))
    for _ in range(rounds):
        weights = _solve(components, noise, residuals, weights)
        off = np.abs(noise * weights)  # = |residual - surface|
        noise = NOISE**2 * np.maximum(1.0, off / (OUTLIER * NOISE))
    return Surface(components, weights, noise)


def without(surface: Surface, residuals: Any, held: Any) -> Any:
    """What the surface would say at the rows `held` (a mask) if they had not been there."""
    kept = ~held
    noise = np.where(held, np.inf, surface.noise)
    start = np.where(held, 0.0, surface.weights)
    weights = _solve(surface.components, noise, np.where(kept, residuals, 0.0), start)
    return sum(c.among(weights) for c in surface.components)[held]


def _solve(components: tuple[_Component, ...], noise: Any, goal: Any, start: Any) -> Any:
    """Conjugate gradients for (kernel + noise) x = goal. Rows of infinite noise keep x = 0."""
    kept = np.isfinite(noise)
    level = np.where(kept, noise, 1.0)
    ease = 1.0 / (level + sum(c.variance for c in components))

    def product(x: Any) -> Any:
        y = sum(c.among(x) for c in components) + level * x
        return np.where(kept, y, 0.0)

    x = np.where(kept, start, 0.0)
    left = np.where(kept, goal, 0.0) - product(x)
    toward = ease * left
    step = toward.copy()
    energy = float(left @ toward)
    enough = 1e-10 * max(float(goal @ (ease * goal)), 1e-300)
    for _ in range(400):
        if energy <= enough:
            break
        image = product(step)
        length = energy / float(step @ image)
        x = x + length * step
        left = left - length * image
        toward = ease * left
        energy, before = float(left @ toward), energy
        step = toward + (energy / before) * step
    return x
