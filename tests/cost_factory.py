"""Made-up but physical latencies for the cost model's tests: a known sum of terms, with noise."""

from __future__ import annotations

import numpy as np

from dsa_profiler import plan
from dsa_profiler.analysis import measured, systems, terms
from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.model import load_model

V32 = load_model("deepseek-v3.2")
H200 = systems.load("h200_sxm")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = tuple(2**k for k in range(1, 18))
CONTEXT_LENGTHS = plan.CONTEXT_LENGTHS
WEIGHTS = {"call": 80e3, "past_call": 40e3, "dense": 1.0, "waves": 150e3, "scoring_floor": 1.5}


def points(phase: str = "generation", heads=(16, 64, 128), limit: float = 2**24) -> Points:
    lengths = LENGTHS if phase == "generation" else CONTEXT_LENGTHS
    grid = [
        (b, s, 0, h)
        for h in heads
        for s in lengths
        for b in BATCHES
        if b * s <= (limit if phase == "generation" else 2**17)
    ]
    return Points(phase, *np.array(grid, float).T)


def truth(at: Points) -> np.ndarray:
    """Latencies in ns by the known sum."""
    form = tuple(WEIGHTS)
    return terms.table(form, terms.Layer(V32, H200), at) @ np.array(list(WEIGHTS.values()))


def rows(
    phase="generation", heads=(16, 64, 128), noise=0.01, seed=0, scale=1.0, order=None
) -> Rows:
    at = points(phase, heads)
    ns = scale * truth(at) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(at)))
    order = np.arange(len(at)) if order is None else order
    return measured.rows(
        phase, at.batch[order], at.seq[order], at.prefix[order], at.heads[order], ns[order]
    )
