"""The opponent: what a table gives without a model of what made it.

Linear brackets on raw latencies along one axis, and beyond the grid the utilisation of the last row
held against a floor (here our own, a decent one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.model import Case


def lines(rows: Rows, axis: str) -> dict[tuple[Any, ...], tuple[Any, Any]]:
    """(positions, latencies) along an axis, by the other coordinates."""
    at = rows.at
    others = [c for c in ("heads", "prefix", "batch", "seq") if c != axis]
    frame = pd.DataFrame({c: getattr(at, c) for c in (*others, axis)}).assign(ns=rows.ns)
    frame = frame.sort_values([*others, axis])
    return {key: (part[axis].to_numpy(), part.ns.to_numpy()) for key, part in frame.groupby(others)}


def keys_of(at: Points, axis: str) -> list[tuple[Any, ...]]:
    others = [c for c in ("heads", "prefix", "batch", "seq") if c != axis]
    return list(zip(*(getattr(at, c) for c in others), strict=True))


def bracket(seen: Rows, held: Rows) -> tuple[Any, Any]:
    """Linear in latency between the nearest shorter and longer row; where there are both."""
    known = lines(seen, "seq")
    inner, line = np.zeros(len(held), bool), np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, "seq")):
        x, y = known.get(key, (np.zeros(0), np.zeros(0)))
        at = held.at.seq[i]
        if len(x) and x[0] < at < x[-1]:
            inner[i], line[i] = True, np.interp(at, x, y)
    return inner, line


def along_heads(seen: Rows, held: Rows) -> Any:
    """Linear in heads between the two given counts, the nearer one's value outside them."""
    known = lines(seen, "heads")
    out = np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, "heads")):
        if key in known:
            out[i] = np.interp(held.at.heads[i], *known[key])
    return out


def held_utilisation(floor: Callable[[Case], float], seen: Rows, held: Rows, axis: str) -> Any:
    """floor(case) / utilisation of the last row of its line."""
    known = lines(seen, axis)
    out = np.full(len(held), np.nan)
    for i, key in enumerate(keys_of(held.at, axis)):
        if key in known:
            x, y = known[key]
            case = held.case(i)
            size = {"seq": "seq_len", "batch": "batch_size"}[axis]
            last = type(case)(**{**case.as_json(), size: int(x[-1])})
            out[i] = floor(case) * y[-1] / floor(last)
    return out
