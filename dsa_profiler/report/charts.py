"""Colours and series of the charts: plain rows, so that tests see data before pixels.

A stage has the same colour on every page and in both themes. Groups are told apart by hue (from
the Okabe-Ito set, safe for the common colour-blindnesses), stages of a group by lightness, and
`unknown` by hatching as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dsa_profiler.marks import STAGES
from dsa_profiler.results import CaseResult

STAGE_COLOURS: dict[str, str] = {
    "qkv_a_proj": "#1c5fa8",
    "qkv_a_norm": "#a9cdef",
    "q_b_proj": "#3f87cc",
    "q_absorb": "#7fb2e0",
    "v_up_proj": "#5b9bd6",
    "o_proj": "#2a73bd",
    "indexer_q_proj": "#0a7d5f",
    "indexer_k_proj": "#2fa583",
    "indexer_rope_norm": "#62bd9f",
    "indexer_quant": "#93d4bf",
    "indexer_cache": "#c0e6da",
    "mqa_logits": "#e69f00",
    "topk": "#d1500a",
    "index_convert": "#f0a987",
    "rope_append": "#e6bfe0",
    "sparse_attn": "#a33f93",
    "sparse_attn_combine": "#cd7fc0",
    "dense_attn": "#7b2f8e",
    "schedule": "#8a9099",
    "communication": "#666d77",
    "memory": "#b5bac2",
    "unknown": "#777777",
}
GROUP_COLOURS: dict[str, str] = {
    "projections": "#3f87cc",
    "indexer": "#0a7d5f",
    "mqa_logits": "#e69f00",
    "topk": "#d1500a",
    "sparse_attn": "#a33f93",
    "other": "#b5bac2",
}
BACKGROUNDS = {"light": "#ffffff", "dark": "#12161c"}
INKS = ("#0d1117", "#ffffff")

Ramp = tuple[str, ...]
RAMPS: dict[str, Ramp] = {
    "light": ("#eef4fb", "#c9def2", "#a4c8e8", "#7fb2de", "#639cd1", "#4885c3", "#2a6fb5",
              "#1f5996", "#154378", "#0c2f5c"),
    "dark": ("#1b2633", "#203750", "#23486f", "#255a8f", "#3671a8", "#4888c2", "#5aa0dd",
             "#84b8e9", "#abd1f4", "#d3e9ff"),
}  # fmt: skip
"""Sequential: more is further from the background, in either theme."""
RATIO_RAMPS: dict[str, Ramp] = {
    "light": ("#0b7a5c", "#63a991", "#a6d9c9", "#cee7de", "#f5f5f4", "#f5d7ca", "#f2b8a0",
              "#db7f5e", "#c0420c"),
    "dark": ("#4fd0a7", "#369377", "#1f5b4b", "#233f3b", "#20252c", "#4d3129", "#7a3a1d",
             "#ba6943", "#ff9c6b"),
}  # fmt: skip
"""Diverging around 1: green is faster, orange is slower."""


@dataclass(frozen=True, slots=True)
class Line:
    """Another latency for the same cases, drawn beside the measured one.

    `ns` maps a case's slug to nanoseconds. `floor` is what the hardware allows, `prediction` a
    cost model's answer, `shipped` a published table's row.
    """

    name: str
    kind: Literal["floor", "prediction", "shipped"]
    ns: Mapping[str, float]


def ms(ns: float) -> float:
    """Milliseconds, to the nanosecond: no digit that was not measured."""
    return round(ns / 1e6, 6)


def stacks(cases: Sequence[CaseResult]) -> dict[str, dict[str, dict[str, Any]]]:
    """Stacked stages of one slice: along the sequence for each batch, and along the batch for each
    sequence. `{"batch_size" | "seq_len": {fixed value: {"x", "cases", "stages": {stage: [ms]}}}}`.
    """
    return {
        fixed: {
            str(value): _stack([c for c in cases if getattr(c.case, fixed) == value], along)
            for value in sorted({getattr(c.case, fixed) for c in cases})
        }
        for fixed, along in (("batch_size", "seq_len"), ("seq_len", "batch_size"))
    }


def _stack(cases: Sequence[CaseResult], along: str) -> dict[str, Any]:
    ordered = sorted(cases, key=lambda c: getattr(c.case, along))
    times = [{s.stage: ms(s.median_ns) for s in c.stages} for c in ordered]
    present = [s for s in STAGES if any(s in t for t in times)]
    return {
        "x": [getattr(c.case, along) for c in ordered],
        "cases": [c.case.slug for c in ordered],
        "stages": {s: [t.get(s, 0.0) for t in times] for s in present},
    }


def curves(cases: Sequence[CaseResult], lines: Sequence[Line] = ()) -> list[dict[str, Any]]:
    """Latency against sequence length, a curve a batch size, measured first and then each line.

    Only lengths that a line knows are in its curve; a line that knows none is left out.
    """
    out = []
    for batch in sorted({c.case.batch_size for c in cases}):
        row = sorted((c for c in cases if c.case.batch_size == batch), key=lambda c: c.case.seq_len)
        out.append(
            {
                "batch": batch,
                "kind": "measured",
                "name": "measured",
                "x": [c.case.seq_len for c in row],
                "y": [ms(c.span_ns.median) for c in row],
                "low": [ms(c.span_ns.p10) for c in row],
                "high": [ms(c.span_ns.p90) for c in row],
                "cases": [c.case.slug for c in row],
            }
        )
        for line in lines:
            known = [c.case for c in row if c.case.slug in line.ns]
            if known:
                out.append(
                    {
                        "batch": batch,
                        "kind": line.kind,
                        "name": line.name,
                        "x": [c.seq_len for c in known],
                        "y": [ms(line.ns[c.slug]) for c in known],
                        "cases": [c.slug for c in known],
                    }
                )
    return out


def level(value: float, low: float, high: float, steps: int = 10) -> int:
    """The ramp's step for a value between low and high; the ends are inside."""
    if not high > low:
        return 0
    return max(0, min(steps - 1, int((value - low) / (high - low) * steps)))


def ratio_level(ratio: float, steps: int = 9) -> int:
    """The diverging ramp's step: its middle within 2 %, its ends at a factor of 1.5."""
    from math import log

    bound = log(1.5)
    if ratio <= 0:
        return steps // 2
    if abs(log(ratio)) < log(1.02):
        return steps // 2
    half = steps // 2
    size = min(half, 1 + int(abs(log(ratio)) / bound * (half - 1)))
    return half + (size if ratio > 1 else -size)


def css() -> str:
    """Classes of every colour above, for the page's style sheet; `light-dark` follows the theme."""
    rules = [f".st-{s}{{--c:{c}}}" for s, c in STAGE_COLOURS.items()]
    rules += [f".gr-{g}{{--c:{c}}}" for g, c in GROUP_COLOURS.items()]
    for prefix, ramps in (("q", RAMPS), ("r", RATIO_RAMPS)):
        for i, (light, dark) in enumerate(zip(ramps["light"], ramps["dark"], strict=True)):
            rules.append(
                f".{prefix}{i}{{background:light-dark({light},{dark});"
                f"color:light-dark({ink(light)},{ink(dark)})}}"
            )
    return "\n".join(rules)


def ink(background: str) -> str:
    """Black or white text, whichever reads better on the background."""
    return max(INKS, key=lambda colour: contrast(colour, background))


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two `#rrggbb` colours, 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    )
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
