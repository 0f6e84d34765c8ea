"""What no cost model can beat: how far the published tables are off when measured again.

Two yardsticks. A second campaign of the same shapes, where one was published (H100, H200): row by
row, so that it can be printed beside the very rows that were scored. And twins inside one table:
long context rows that differ in nothing but a prefix of 128 tokens, a few per cent of work which
the median of their ratio takes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points

KEY = ["architecture", "mla_dtype", "kv_cache_dtype", "gemm_type", "num_heads", "batch_size"]
KEY += ["isl", "step"]
LONG = 4096
SHAPE = ["batch", "seq", "prefix", "heads"]


def index(at: Points) -> pd.MultiIndex:
    """The shapes of rows, to join them by."""
    return pd.MultiIndex.from_arrays([getattr(at, name) for name in SHAPE], names=SHAPE)


def again(rows: Rows, second: Rows | None) -> Any:
    """The same shapes in a second campaign, in ns; NaN where it has none."""
    if second is None:
        return np.full(len(rows), np.nan)
    return pd.Series(second.ns, index(second.at)).reindex(index(rows.at)).to_numpy()


def campaign(first: Path, second: Path) -> dict[str, Any]:
    """All shapes of two campaigns, one against the other."""
    one, two = (pd.read_parquet(path)[[*KEY, "latency"]] for path in (first, second))
    both = one.merge(two, on=KEY)
    off = (both.latency_x / both.latency_y - 1).abs()
    levels = (("median", 0.5), ("p90", 0.9), ("p95", 0.95))
    return {"rows": len(both)} | {name: float(off.quantile(q)) for name, q in levels}


def twins(rows: Rows) -> pd.Series:
    """|log ratio| of long context rows to their twins, less its median, by head count."""
    long = rows[(rows.at.seq >= LONG)]
    table = pd.Series(long.ns, index(long.at)).unstack("prefix").dropna()
    if table.shape[1] < 2:
        return pd.Series(dtype=float)
    ratio = np.log(table.iloc[:, -1] / table.iloc[:, 0])
    return (ratio - ratio.median()).abs().droplevel(["batch", "seq"])
