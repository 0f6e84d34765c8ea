"""Where a case lies against the measured grid: on it, in it, or how many doublings past it.

The grid may be a staircase (long sequences were run at small batches only), so that a case can be
beyond it although its batch and its length were both measured.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from dsa_profiler.analysis.roofline import Points

STRAIGHTEN = 0.01
"""Noise that monotony may take away, relative. A device that is slower still at the smaller batch
chooses its kernels so; that is kept.
"""


def distance(rows: Points, at: Points) -> Any:
    """(cases, 3): doublings past the rows in batch size, in length and in heads.

    Prefixes outside the measured ones count as length.
    """
    batch, seq = np.log2(at.batch), np.log2(at.seq)
    best = np.full((len(at), 2), np.inf)
    for level in np.unique(rows.batch):
        longest = np.log2(rows.seq[rows.batch == level].max())
        step = np.maximum(np.stack([batch - np.log2(level), seq - longest], axis=1), 0)
        best = np.where((step.sum(1) < best.sum(1))[:, None], step, best)
    best[:, 0] += np.maximum(np.log2(rows.batch.min()) - batch, 0)
    best[:, 1] += np.maximum(np.log2(rows.seq.min()) - seq, 0)
    best[:, 1] += _outside(np.log2(rows.prefix / 128 + 1), np.log2(at.prefix / 128 + 1))
    best = np.column_stack([best, _outside(np.log2(rows.heads), np.log2(at.heads))])
    return np.where(best < 1e-9, 0.0, best)


def _outside(known: Any, asked: Any) -> Any:
    """How far `asked` is from the span of `known`."""
    return np.maximum(asked - known.max(), 0) + np.maximum(known.min() - asked, 0)


def measured(rows: Points, at: Points) -> Any:
    """True where exactly this shape is a row."""
    known = np.ones(len(at), bool)
    here, there = np.zeros(len(at), np.int64), np.zeros(len(rows), np.int64)
    for name in ("batch", "seq", "prefix", "heads"):
        levels, place = np.unique(getattr(rows, name), return_inverse=True)
        asked = np.minimum(np.searchsorted(levels, getattr(at, name)), len(levels) - 1)
        known &= levels[asked] == getattr(at, name)
        here, there = here * len(levels) + asked, there * len(levels) + place.reshape(-1)
    return known & np.isin(here, there)


def edge(rows: Points, axis: str) -> Any:
    """True on the last row of every line along `axis`: each batch size's last length, or each
    length's last batch size.
    """
    along, across = (rows.seq, rows.batch) if axis == "seq" else (rows.batch, rows.seq)
    out = np.zeros(len(rows), bool)
    for level in np.unique(across):
        line = across == level
        out |= line & (along == along[line].max())
    return out


def brackets(
    rows: Points, at: Points, top_k: int, latency: Callable[[Points], Any]
) -> tuple[Any, Any]:
    """The least and the greatest latency that monotone physics allows each case.

    They are the two corners of the case's cell in the grid of measured batch sizes and lengths (and
    the last length that top-k leaves whole), made monotone in both as far as noise goes: the mean
    (of logarithms) of the running maximum from below and the running minimum from above. Outside
    the grid a cell is open: 0 and infinity.
    """
    batch = np.unique(rows.batch)
    low, high = np.zeros(len(at)), np.full(len(at), np.inf)
    for heads, prefix in product(np.unique(at.heads), np.unique(at.prefix)):
        here = (at.heads == heads) & (at.prefix == prefix)
        if not here.any():
            continue
        last = top_k - prefix - (at.phase == "generation")
        seq = np.unique(np.append(rows.seq, np.clip(last, rows.seq.min(), rows.seq.max())))
        grid_b, grid_s = (g.reshape(-1) for g in np.meshgrid(batch, seq, indexing="ij"))
        size = len(grid_b)
        grid = Points(at.phase, grid_b, grid_s, np.full(size, prefix), np.full(size, heads))
        table = _monotone(np.log(latency(grid)).reshape(len(batch), len(seq)))
        table = np.pad(np.exp(table), 1, mode="edge")
        table[0], table[:, 0] = 0.0, 0.0
        table[-1], table[:, -1] = np.inf, np.inf
        b, s = at.batch[here], at.seq[here]
        low[here] = table[np.searchsorted(batch, b, "right"), np.searchsorted(seq, s, "right")]
        high[here] = table[
            np.searchsorted(batch, b, "left") + 1, np.searchsorted(seq, s, "left") + 1
        ]
    return np.minimum(low, high), np.maximum(low, high)


def _monotone(table: Any) -> Any:
    """Logarithms made monotone along both axes, as far as STRAIGHTEN allows."""
    up = np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)
    turned = table[::-1, ::-1]
    down = np.minimum.accumulate(np.minimum.accumulate(turned, 0), 1)[::-1, ::-1]
    return np.clip((up + down) / 2, table - STRAIGHTEN, table + STRAIGHTEN)
