"""Made-up but physical latencies for the cost model's tests: a known sum of terms, with noise."""

from __future__ import annotations

import numpy as np

from dsa_profiler import plan
from dsa_profiler.analysis import measured, systems, terms
from dsa_profiler.analysis.measured import Rows
from dsa_profiler.analysis.roofline import Points
from dsa_profiler.model import load_model
from dsa_profiler.results import CaseResult, Coverage, Results, Spread, StageStat, TraceSummary

V32 = load_model("deepseek-v3.2")
H200 = systems.load("h200_sxm")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = tuple(2**k for k in range(1, 18))
CONTEXT_LENGTHS = plan.CONTEXT_LENGTHS
WEIGHTS = {"call": 80e3, "past_call": 40e3, "dense": 1.0, "waves": 1.15, "scoring_floor": 1.5}


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


def staged(phase="generation"):
    """A session whose stages are known, logits and top-k absent up to top-k."""
    where = points(phase, heads=(64, 128), limit=2**21)
    cases = []
    tokens, on = where.tokens, terms.past(where, 2048)
    waves = np.ceil(tokens * np.ceil(where.heads / 64) / 132)
    columns = {
        "o_proj": 20e3 + 0.5 * tokens * where.heads,
        "mqa_logits": on * (5e3 + 0.03 * where.batch * where.seq),
        "topk": on * (8e3 + 10.0 * tokens),
        "sparse_attn": 150e3 * waves,
    }
    for i in range(len(where)):
        times = {name: float(ns[i]) for name, ns in columns.items() if ns[i] > 0}
        total = sum(times.values())
        stages = tuple(StageStat(s, "other", 1.0, ns, ns / total) for s, ns in times.items())
        span = Spread(*[1.1 * total] * 5)
        cases.append(CaseResult(where.case(i), 5, span, total, 0.0, 0.1 * total, stages, ()))
    summary = TraceSummary("x", "1", ("NVIDIA H200",), 1, 1, 1, 1, 1)
    return Results(summary, Coverage(1, 1, 0, ()), (), (), tuple(cases))
