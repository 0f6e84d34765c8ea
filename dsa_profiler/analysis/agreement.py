"""Two tables of the same machine compared by key: how far apart, where, and who has what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dsa_profiler.columns import MODULE_KEY

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Ratios ours / theirs over the keys of both. `quantiles` are those of `QUANTILES`; `off` is
    the median of |ratio - 1|. `by_heads` has the median ratio and the number of keys each.
    """

    shared: int
    only_ours: int
    only_theirs: int
    quantiles: tuple[float, ...]
    off: float
    by_heads: dict[int, tuple[float, int]]
    worst: tuple[tuple[str, float, float], ...]

    def as_json(self) -> dict[str, object]:
        names = (f"p{round(100 * q)}" for q in QUANTILES)
        return {
            "shared": self.shared,
            "only_ours": self.only_ours,
            "only_theirs": self.only_theirs,
            "ratio": dict(zip(names, self.quantiles, strict=False)),
            "median_difference": self.off,
            "by_heads": {str(h): {"ratio": r, "keys": n} for h, (r, n) in self.by_heads.items()},
            "worst": [{"key": k, "ours_ms": a, "theirs_ms": b} for k, a, b in self.worst],
        }


def agree(ours: pd.DataFrame, theirs: pd.DataFrame, worst: int = 5) -> Agreement:
    """Compare by `columns.MODULE_KEY`; of a key that comes twice the last row counts, as it does
    for every reader. Keys beyond both tables are counted, never interpolated.
    """
    key = list(MODULE_KEY)
    a = ours.drop_duplicates(key, keep="last")[[*key, "latency"]]
    b = theirs.drop_duplicates(key, keep="last")[[*key, "latency"]]
    both = a.merge(b, on=key, suffixes=("_a", "_b"))
    ratio = (both["latency_a"] / both["latency_b"]).to_numpy(float)
    quantiles = tuple(float(q) for q in np.quantile(ratio, QUANTILES)) if len(ratio) else ()
    heads = both["num_heads"].to_numpy()
    order = np.argsort(-np.abs(np.log(ratio)), kind="stable")[:worst]
    return Agreement(
        shared=len(both),
        only_ours=len(a) - len(both),
        only_theirs=len(b) - len(both),
        quantiles=quantiles,
        off=float(np.median(np.abs(ratio - 1))) if len(ratio) else float("nan"),
        by_heads={
            int(h): (float(np.median(ratio[heads == h])), int((heads == h).sum()))
            for h in np.unique(heads)
        },
        worst=tuple(
            (_key(both.iloc[i]), float(both["latency_a"].iloc[i]), float(both["latency_b"].iloc[i]))
            for i in order
        ),
    )


def _key(row: pd.Series[Any]) -> str:
    return " ".join(f"{c}={row[c]}" for c in MODULE_KEY if c != "architecture")
