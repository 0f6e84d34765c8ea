"""The three checks of an alignment, and which differences are legitimate.

A difference is failed unless a rule of `expected.toml` makes it legitimate; what a rule forbids is
flagged on whichever side runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dsa_profiler.analysis.alignment import Check, Finding, Verdict
from dsa_profiler.analysis.expected import Setting, required_stages, verdict_on, why_absent
from dsa_profiler.analysis.names import parse
from dsa_profiler.analysis.pairing import Item
from dsa_profiler.analysis.slots import Comparison, Lone, ratio
from dsa_profiler.analysis.variants import Time, Variants

FAIL_ON = {
    "names": "kernel_names_match",
    "latency": "latency_within_tolerance",
    "kernels": "no_missing_or_extra_kernels",
}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Ratios up to which times agree, either way.

    floor_ns  differences below this are the timer's, not the kernel's: two of its 32 ns ticks.
    """

    default: float = 2.0
    stages: Mapping[str, float] = field(default_factory=dict)
    floor_ns: float = 64.0

    def of(self, stage: str) -> float:
        return self.stages.get(stage, self.default)

    def agrees(self, stage: str, left: float, right: float) -> bool:
        limit = self.of(stage)
        return abs(left - right) < self.floor_ns or 1 / limit <= ratio(left, right) <= limit


@dataclass(frozen=True, slots=True)
class Judged:
    """Missing and extra kernels that count, those that are explained, and what is forbidden."""

    missing: tuple[Finding, ...]
    extra: tuple[Finding, ...]
    explained: tuple[Finding, ...]
    flagged: tuple[Finding, ...]


def judge(
    found: Comparison, left: Variants, right: Variants, settings: tuple[Setting, Setting]
) -> Judged:
    """Sort the differences into those that count and those that are legitimate."""
    lists: dict[str, list[Finding]] = {"missing": [], "extra": [], "explained": []}
    for kind, lone, setting, side in (
        ("missing", found.missing, settings[1], "e2e"),
        ("extra", found.extra, settings[0], "standalone"),
    ):
        for one in lone:
            why = _legitimate(one, setting, side)
            finding = Finding(
                kind, one.stage, one.item.word.name, _where(one, right), why, one.median_ns
            )
            lists["explained" if why else kind].append(finding)
    flagged = [
        *_forbidden(left, settings[0], "standalone"),
        *_forbidden(right, settings[1], "e2e"),
    ]
    return Judged(
        tuple(lists["missing"]), tuple(lists["extra"]), tuple(lists["explained"]), tuple(flagged)
    )


def unseen(found: Comparison, left: Variants, right: Variants, settings: Setting) -> list[str]:
    """Required stages that neither side shows, each with the reason why it is required.

    A kernel that no rule knows might be a new logits or top-k kernel, so it silences those two.
    """
    items = [i for side in (left, right) for v in side.judged for i in v.items]
    seen = {i.stage for i in items} | {s for s, _, _ in found.stages}
    new = any(i.stage == "unknown" and not i.word.role and not i.word.family for i in items)
    return [
        f"{s}: {why}"
        for s, why in required_stages(settings).items()
        if s not in seen and (s == "sparse_attn" or not new)
    ]


def checks(
    found: Comparison,
    judged: Judged,
    times: tuple[Time, Time],
    limit: Tolerance,
    parts: Sequence[str] = (),
) -> list[Check]:
    """The three checks, each with its detail. `parts` are ranks beyond tolerance, in words."""
    return [_names(found), _latency(found, times, limit, parts), _kernels(judged)]


def _names(found: Comparison) -> Check:
    renamed = tuple(
        f"{s.left_item.word.base} -> {s.right_item.word.base}"
        for s in found.slots
        if s.how == "renamed"
    )
    tuned = sum(s.how == "retuned" for s in found.slots)
    same = len(found.slots) - len(renamed)
    detail = f"{same} of {len(found.slots)} kernels are the same"
    detail += f", {tuned} of them matrix products with other tiles" if tuned else ""
    detail += f"; renamed: {_some(renamed)}" if renamed else ""
    status: Verdict = "pass" if found.slots and not renamed else "fail"
    return Check("kernel_names_match", status, detail, renamed)


def _latency(
    found: Comparison, times: tuple[Time, Time], limit: Tolerance, parts: Sequence[str]
) -> Check:
    off = [
        f"{stage} {left / 1e3:.1f} us against {right / 1e3:.1f} us ({ratio(left, right):.2f}x)"
        for stage, (left, right) in _paired(found).items()
        if not limit.agrees(stage, left, right)
    ]
    for s in found.slots:
        left, right = s.left_time.median, s.right_time.median
        if not limit.agrees(s.stage, left, right):
            off.append(f"{s.left_item.word.base} ({s.stage}) {s.ratio:.2f}x")
    total = ratio(times[0].sum_ns, times[1].sum_ns)
    if not limit.agrees("", times[0].sum_ns, times[1].sum_ns):
        off.append(f"the whole layer {total:.2f}x")
    off += parts if not off else []
    detail = f"the layer's kernels take {total:.2f}x of the server's, tolerance {limit.default:g}x"
    detail += f"; outside: {_some(tuple(off))}" if off else ""
    status: Verdict = "fail" if off or not found.slots else "pass"
    return Check("latency_within_tolerance", status, detail, tuple(off))


def _paired(found: Comparison) -> dict[str, tuple[float, float]]:
    """Time by stage of what both sides run; what one lacks is another check's business."""
    out: dict[str, tuple[float, float]] = {}
    for s in found.slots:
        left, right = out.get(s.stage, (0.0, 0.0))
        out[s.stage] = (left + s.left_time.median, right + s.right_time.median)
    return out


def _kernels(judged: Judged) -> Check:
    found = (*judged.missing, *judged.extra, *judged.flagged)
    names = tuple(f"{f.kind} {parse(f.kernel).base} ({f.stage}, {f.where})" for f in found)
    detail = f"{len(judged.missing)} missing, {len(judged.extra)} extra"
    detail += f", {len(judged.flagged)} forbidden" if judged.flagged else ""
    detail += f", {len(judged.explained)} explained" if judged.explained else ""
    detail += f"; {_some(names)}" if names else ""
    return Check("no_missing_or_extra_kernels", "fail" if names else "pass", detail, names)


def _some(items: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest


def _legitimate(one: Lone, lacking: Setting, side: str) -> str:
    """Why the side that lacks a kernel may lack it; "" when it may not."""
    word = one.item.word
    if word.role == "context":
        return "the server's own work around the attention module"
    if word.role == "memory" and one.at_edge:
        return "a copy or fill before the first or after the last kernel of the layer"
    return why_absent(one.stage, word.base, lacking, side)


def _where(one: Lone, right: Variants) -> str:
    if one.everywhere or not one.where:
        return "every layer"
    ranks = {r for r, _ in one.where}
    total = {r for v in right.judged for r, _ in v.places}
    layers = sorted({n for _, n in one.where})
    text = "layers " + _spans(layers)
    return text if ranks == total else f"ranks {_spans(sorted(ranks))}, {text}"


def _spans(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 reads 0-2, 5."""
    out: list[list[int]] = []
    for n in numbers:
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in out)


def _forbidden(side: Variants, setting: Setting, name: str) -> list[Finding]:
    out: dict[str, Finding] = {}
    for variant in side.judged:
        for item in variant.items:
            why = _forbids(item, setting, name)
            if why:
                out.setdefault(
                    item.word.name,
                    Finding("forbidden", item.stage, item.word.name, name, why, item.median_ns),
                )
    return list(out.values())


def _forbids(item: Item, setting: Setting, side: str) -> str:
    return verdict_on(item.stage, item.word.base, setting, side, "forbidden")
