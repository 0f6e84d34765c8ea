"""The stage of every kernel, and how it is known: by its mark, its name, or its place.

A mark wins over a name: whoever marked the code knows more than a pattern. A graph's kernel takes
the mark under which its node was captured. What nothing tells is `unknown`, and stays visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dsa_profiler.analysis import classify
from dsa_profiler.analysis.attribute import Attribution, Marks
from dsa_profiler.analysis.coding import distinct, look_up
from dsa_profiler.columns import NULL, Trace
from dsa_profiler.marks import STAGES

if TYPE_CHECKING:
    from collections.abc import Mapping

    Codes = np.ndarray[Any, np.dtype[np.int8]]

PROVENANCE = ("none", "mark", "capture", "name", "order")
CODE = {stage: number for number, stage in enumerate(STAGES)}
UNKNOWN = CODE["unknown"]


@dataclass(frozen=True, slots=True, eq=False)
class Staging:
    """One entry a kernel: `stage` indexes marks.STAGES, `provenance` indexes PROVENANCE."""

    stage: Codes
    provenance: Codes


def stage(trace: Trace, attribution: Attribution, marks: Marks) -> Staging:
    """Give every kernel and memory operation its stage."""
    names = distinct(trace.kernels.name)
    kinds = [classify.classify(trace.strings.get(n, "")) for n in names.tolist()]
    by_name = {
        n: CODE[k.stage] for n, k in zip(names.tolist(), kinds, strict=True) if k.stage is not None
    }
    code = look_up(by_name, trace.kernels.name)
    provenance = np.where(code >= 0, np.int8(3), np.int8(0))
    by_mark = {n: CODE[m.value] for n, m in marks.parsed.items() if m.kind == "stage"}
    if by_mark:
        of_range = np.append(look_up(by_mark, trace.ranges.text), np.int8(NULL))
        marked = of_range[attribution.stage]
        hit = marked >= 0
        code[hit] = marked[hit]
        provenance[hit] = 1 + attribution.captured[hit]
    families = {n: k.family for n, k in zip(names.tolist(), kinds, strict=True) if k.family}
    _by_order(trace, attribution, families, code, provenance)
    code[code < 0] = UNKNOWN
    return Staging(code, provenance)


def _by_order(
    trace: Trace,
    attribution: Attribution,
    families: Mapping[int, str],
    code: Codes,
    provenance: Codes,
) -> None:
    """Let the order rules look at each iteration that holds a kernel of unknown stage.

    Kernels are taken in the order of issue (launch, then graph node): streams reorder starts.
    """
    kernels = trace.kernels
    open_rows = (code < 0) & (attribution.iteration >= 0) & (kernels.kind == 0)
    if not open_rows.any():
        return
    affected = np.zeros(len(trace.ranges), np.bool_)
    affected[attribution.iteration[open_rows]] = True
    inside = (attribution.iteration >= 0) & (kernels.kind == 0)
    inside[inside] = affected[attribution.iteration[inside]]
    rows = np.flatnonzero(inside)
    issued = np.where(
        attribution.launch[rows] >= 0,
        trace.launches.start[attribution.launch[rows]],
        kernels.start[rows],
    )
    device, piece = kernels.device[rows], attribution.iteration[rows]
    last = (kernels.name[rows], kernels.end[rows], kernels.start[rows], kernels.graph_node[rows])
    rows = rows[np.lexsort((*last, issued, device, piece))]
    piece = np.stack([attribution.iteration[rows], kernels.device[rows]])
    borders = np.flatnonzero(np.any(piece[:, 1:] != piece[:, :-1], axis=0)) + 1
    for part in np.split(rows, borders):
        known = [STAGES[c] if c >= 0 else None for c in code[part].tolist()]
        placed = classify.by_order(
            known, [families.get(n, "") for n in kernels.name[part].tolist()]
        )
        for row, name in zip(part.tolist(), placed, strict=True):
            if name is not None:
                code[row] = CODE[name]
                provenance[row] = 4
