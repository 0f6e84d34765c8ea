"""What makes an alignment inconclusive, and what is told beside its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dsa_profiler.analysis import sides
from dsa_profiler.analysis.evidence import mode
from dsa_profiler.errors import Warn

if TYPE_CHECKING:
    from dsa_profiler.analysis.options import Options
    from dsa_profiler.analysis.sides import Side
    from dsa_profiler.analysis.uneven import Part
    from dsa_profiler.analysis.variants import Variants
    from dsa_profiler.analysis.words import Words
    from dsa_profiler.model import Case


def doubts(a: Side, b: Side, words: Words, case: Case | None, options: Options) -> list[Warn]:
    """What makes a comparison of two sets of layers inconclusive."""
    out = []
    if b.steps < options.min_steps or a.steps < options.min_steps:
        fewer = min((a.steps, "standalone"), (b.steps, "e2e"))
        unit = (
            "iteration" if (a if fewer[1] == "standalone" else b).origin == "iteration" else "step"
        )
        out.append(
            Warn(
                "align-few-steps",
                f"{fewer[1]}: only {fewer[0]} {unit}, at least {options.min_steps} are needed",
                "record a longer window, or lower --min-steps",
            )
        )
    phases = [sides.seen_phases(side, words) for side in (a, b)]
    if phases[0] and phases[1] and not phases[0] & phases[1]:
        out.append(
            Warn(
                "align-phases",
                f"the standalone layer runs {_names(phases[0])} kernels, "
                f"the server's {_names(phases[1])} kernels",
                "compare two recordings of the same phase",
            )
        )
    return out + _lengths(b, case, options)


def _lengths(b: Side, case: Case | None, options: Options) -> list[Warn]:
    """Sequence lengths, where the server's annotations or the user tell them."""
    if case is None:
        return []
    told = options.e2e_kv
    if told is None and b.kv_tokens:
        told = round(float(np.median(b.kv_tokens)) / case.batch_size)
    if told is None:
        return []
    short = (case.kv_len <= options.index_topk, told <= options.index_topk)
    if short[0] == short[1] and 0.9 <= told / case.kv_len <= 1.1:
        return []
    return [
        Warn(
            "align-length",
            f"the server's sequences hold {told} keys, the standalone case's {case.kv_len}",
            "load the server with sequences of that length, or align another --case",
        )
    ]


def _names(phases: set[str]) -> str:
    return " and ".join(sorted(phases))


def unseen(what: str) -> Warn:
    """A required kernel that neither side runs."""
    return Warn(
        "align-required-unseen",
        f"neither side runs a kernel of {what}",
        "give the --case that was recorded; check both traces with `dsa-profiler analyze`",
    )


def uneven_layers(parts: Sequence[Part]) -> tuple[Warn, ...]:
    """Layers beyond tolerance where all of them together are within."""
    if not parts:
        return ()
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return (
        Warn(
            "align-uneven",
            f"single layers are beyond tolerance: {', '.join(map(str, parts[:4]))}{more}",
            "look at these layers in Nsight; the medians over all layers speak for the rest",
        ),
    )


def notes(left: Variants, right: Variants, b: Side, layers: int) -> tuple[Warn, ...]:
    """What is told and not judged. `layers` is the model's count, 0 when unknown."""
    out = []
    for side, name in ((left, "standalone"), (right, "e2e")):
        if side.rare:
            out.append(
                Warn(
                    "align-deviating",
                    f"{name}: {side.rare} of {side.total} layers ran another sequence of kernels "
                    "than their place usually does; they are left out of the times",
                )
            )
    per_step = mode(Counter((x.rank, x.step) for x in b.layers))
    if layers and per_step % layers:
        out.append(
            Warn(
                "align-layer-count",
                f"{per_step} layers a step on a rank, the model has {layers}",
                "with pipeline parallelism a rank holds a part of them",
            )
        )
    lost = sum(int((s.launch < 0).sum()) for s in b.sequences)
    if lost:
        out.append(
            Warn(
                "align-no-launch",
                f"e2e: {lost} kernels have no launch in the file and were placed by their start",
            )
        )
    return tuple(out)
