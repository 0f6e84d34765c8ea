"""Is the standalone layer what the server runs? Two recordings in, a verdict with evidence out.

The order is: kernels in issue order, layers of each side, layers paired kernel by kernel, times
compared slot by slot, three checks. Whatever stands in the way of a comparison makes the verdict
inconclusive, never pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dsa_profiler.analysis import doubts, evidence, sides, slots, uneven, variants, verdict
from dsa_profiler.analysis import reasons as known_reasons
from dsa_profiler.analysis import steps as stepping
from dsa_profiler.analysis.alignment import CHECKS, Alignment, Check
from dsa_profiler.analysis.expected import Setting
from dsa_profiler.analysis.options import Options
from dsa_profiler.analysis.sequence import Recorded, build
from dsa_profiler.analysis.sides import Side, Wanted
from dsa_profiler.analysis.verdict import FAIL_ON
from dsa_profiler.analysis.words import Words
from dsa_profiler.columns import Trace
from dsa_profiler.errors import UsageError, Warn
from dsa_profiler.marks import STAGES
from dsa_profiler.model import Case


def align(
    standalone: Sequence[Trace], e2e: Sequence[Trace], options: Options | None = None
) -> Alignment:
    """Align two recordings, each one trace or several (one a rank, or one a chunk of cases).

    Raises UsageError when `options.case` names a case that is in neither recording.
    """
    options = options or Options()
    words = Words()
    left = [build(t, words, n) for n, t in enumerate(standalone)]
    right = [build(t, words, n) for n, t in enumerate(e2e)]
    case, problem = _case(left, right, options)
    wanted = _wanted(case, options)
    framework = _framework([*right, *left], words)
    settings = tuple(
        _setting(case, wanted, r, framework, tp, options)
        for r, tp in ((left, options.tp[0]), (right, options.tp[1]))
    )
    if problem is not None:
        return _without_layers((problem,), right, wanted, options)
    a, b = _sides(left, right, words, case, wanted, (settings[0], settings[1]))
    problems = (*_labelled(a, "standalone"), *_labelled(b, "e2e"))
    if not a.layers or not b.layers:
        return _without_layers(problems, right, wanted, options, b)
    return _compared(a, b, words, case, options, problems)


def _compared(
    a: Side, b: Side, words: Words, case: Case | None, options: Options, problems: tuple[Warn, ...]
) -> Alignment:
    staged = all(side.method != "anchors" for side in (a, b))
    left = variants.group(a.layers, a.sequences, words, staged)
    right = variants.group(b.layers, b.sequences, words, staged)
    found = slots.compare(left, right)
    times = (variants.times(left.judged), variants.times(right.judged))
    settings = (_with_graph(a), _with_graph(b))
    judged = verdict.judge(found, left, right, settings)
    missing_everywhere = verdict.unseen(found, left, right, settings[0])
    problems = (
        *problems,
        *doubts.doubts(a, b, words, case, options),
        *(doubts.unseen(u) for u in missing_everywhere),
    )
    slow = [str(p) for p in uneven.ranks(found, left, right, options.tolerance)]
    all_checks = verdict.checks(found, judged, times, options.tolerance, slow)
    odd = [] if slow else uneven.layers(found, left, right, options.tolerance)
    clues = known_reasons.Evidence(
        found, *settings, *times, options.architecture == "DeepseekV32ForCausalLM"
    )
    return Alignment(
        verdict=_verdict(all_checks, problems, options),
        checks=tuple(all_checks),
        server=_server(b, right, words),
        stages=evidence.stage_rows(found),
        pairs=evidence.pair_rows(found, left, right),
        missing=judged.missing,
        extra=judged.extra,
        problems=problems,
        reasons=tuple(known_reasons.known(clues)),
        explained=judged.explained,
        flagged=judged.flagged,
        unknown=evidence.unknown_names(left, right, found),
        totals=evidence.totals(times),
        ranks=evidence.rank_rows(b.sequences, right),
        lanes=evidence.lanes(found, left, right),
        settings=_settings(case, options, settings, a),
        notes=(*doubts.notes(left, right, b, options.layers), *doubts.uneven_layers(odd)),
    )


def _verdict(checks: Sequence[Check], problems: Sequence[Warn], options: Options) -> Any:
    if problems:
        return "inconclusive"
    gates = {FAIL_ON[name] for name in options.fail_on}
    return "fail" if any(c.status == "fail" and c.name in gates for c in checks) else "pass"


def _case(
    left: Sequence[Recorded], right: Sequence[Recorded], options: Options
) -> tuple[Case | None, Warn | None]:
    """The case to align, and what stands in the way of choosing one."""
    ours = dict.fromkeys(c for one in left for c in one.cases)
    theirs = dict.fromkeys(c for one in right for c in one.cases)
    there = [c for c in ours if c in theirs] if ours and theirs else [*ours, *theirs]
    if options.case:
        chosen = Case.from_slug(options.case)
        if there and chosen not in there:
            raise UsageError(
                "align-case",
                f"no case {options.case} in the recording",
                f"one of {', '.join(c.slug for c in there[:8])}",
            )
        return chosen, None
    if ours and theirs and not there:
        return None, Warn(
            "align-other-case",
            "the two recordings share no case",
            "record the same case on both sides",
        )
    fitting = [c for c in there if _served(c, left, right)] if len(there) > 1 else there
    if len(fitting) > 1 or (len(there) > 1 and not fitting):
        names = ", ".join(c.slug for c in (fitting or there)[:6])
        return None, Warn(
            "align-several-cases",
            f"{len(fitting or there)} cases could be aligned: {names}",
            "choose one with --case",
        )
    return (fitting[0] if fitting else None), None


def _served(case: Case, left: Sequence[Recorded], right: Sequence[Recorded]) -> bool:
    """Whether a server among the recordings has steps of this case."""
    wanted = Wanted.of(case)
    steps = [s for one in (*left, *right) for s in stepping.from_ranges(one.trace)[1]]
    return not steps or any(wanted.fits(s.batch) for s in steps)


def _wanted(case: Case | None, options: Options) -> Wanted:
    wanted = Wanted.of(case) if case is not None else Wanted()
    if options.phase:
        wanted = replace(wanted, phase=options.phase)
    if options.batch is not None:
        wanted = replace(wanted, batch=options.batch, tokens=None)
    return wanted


def _framework(recorded: Sequence[Recorded], words: Words) -> str:
    for one in recorded:
        name, _ = stepping.from_ranges(one.trace)
        if name:
            return name
    for mark, name in (("tensorrt_llm::", "trtllm"), ("vllm::", "vllm"), ("sgl", "sglang")):
        if any(mark in w.name for w in words.all):
            return name
    return ""


def _setting(
    case: Case | None,
    wanted: Wanted,
    recorded: Sequence[Recorded],
    framework: str,
    tp: int | None,
    options: Options,
) -> Setting:
    sms = {str(g.sm) for one in recorded for g in one.trace.info.gpus if g.sm}
    kv = ""
    if case is not None:
        kv = "short" if case.kv_len <= options.index_topk else "long"
    return Setting(
        phase=wanted.phase,
        kv=kv,
        dtype=case.dtype if case is not None else "",
        sm=sms.pop() if len(sms) == 1 else "",
        framework=framework,
        era=options.era,
        tp=tp,
    )


def _sides(
    left: Sequence[Recorded],
    right: Sequence[Recorded],
    words: Words,
    case: Case | None,
    wanted: Wanted,
    settings: tuple[Setting, Setting],
) -> tuple[Side, Side]:
    """Both sides. A side with marks is known whole, and tells how to cut the one without.

    So does a server whose layers have surroundings, where no side has marks.
    """
    marked = [any(one.cases for one in side) for side in (left, right)]
    known: dict[int, Side] = {}
    for n, side in enumerate((left, right)):
        if marked[n] and case is not None:
            known[n] = sides.from_iterations(side, case, settings[n])
    for n, side in enumerate((left, right)):
        if n not in known:
            template = sides.templates(known[1 - n], words) if marked[1 - n] else {}
            known[n] = sides.from_server(side, words, wanted, settings[n], template, n == 0)
    whole = [marked[n] or not known[n].rotated for n in range(2)]
    if whole[0] != whole[1]:
        n = whole.index(False)
        template = sides.templates(known[1 - n], words)
        known[n] = sides.from_server((left, right)[n], words, wanted, settings[n], template, n == 0)
    return known[0], known[1]


def _with_graph(side: Side) -> Setting:
    """The side's setting, with whether its layers' kernels were replayed by a graph."""
    flags = [
        sequence.in_graph[np.concatenate(rows)]
        for rank, sequence in enumerate(side.sequences)
        if (rows := [x.rows for x in side.layers if x.rank == rank])
    ]
    return replace(side.setting, graph=bool(np.concatenate(flags).mean() > 0.5))


def _labelled(side: Side, name: str) -> tuple[Warn, ...]:
    return tuple(Warn(p.slug, f"{name}: {p.what}", p.cure) for p in side.problems)


def _server(b: Side, right: variants.Variants, words: Words) -> dict[str, Any]:
    """The contract's `e2e` object, and how it was come by."""
    per_step: Counter[tuple[int, int]] = Counter((x.rank, x.step) for x in b.layers)
    dsa: Counter[tuple[int, int]] = Counter()
    is_dsa = [w.stage in evidence.DSA_STAGES for w in words.all]
    marked = [n for n, s in enumerate(STAGES) if s in evidence.DSA_STAGES]
    for x in b.layers:
        sequence = b.sequences[x.rank]
        named = any(is_dsa[w] for w in sequence.word[x.rows].tolist())
        dsa[x.rank, x.step] += named or bool(np.isin(sequence.stage[x.rows], marked).any())
    return {
        "steps": b.steps,
        "layers_per_step": evidence.mode(per_step),
        "dsa_layers": evidence.mode(dsa),
        "method": b.method,
        "steps_found": b.steps_found,
        "steps_by": b.origin,
        "anchor": b.anchor,
        "ranks": len({x.rank for x in b.layers}),
        "layers": len(b.layers),
        "deviating_layers": right.rare,
        "batches": dict(sorted(b.batches.items(), key=lambda x: (-x[1], x[0]))[:20]),
    }


def _settings(
    case: Case | None, options: Options, settings: tuple[Setting, Setting], a: Side
) -> dict[str, Any]:
    return {
        "case": case.slug if case is not None else "",
        "iterations": a.steps,
        "tolerance": options.tolerance.default,
        "tolerance_by_stage": dict(sorted(options.tolerance.stages.items())),
        "fail_on": sorted(options.fail_on),
        "standalone": _told(settings[0]),
        "e2e": _told(settings[1]),
        **options.settings,
    }


def _told(setting: Setting) -> dict[str, Any]:
    names = ("phase", "kv", "dtype", "sm", "framework", "era", "graph", "tp")
    return {n: v for n in names if (v := getattr(setting, n)) not in ("", None)}


def _without_layers(
    problems: tuple[Warn, ...],
    right: Sequence[Recorded],
    wanted: Wanted,
    options: Options,
    b: Side | None = None,
) -> Alignment:
    """An inconclusive alignment of what cannot be compared."""
    detail = problems[0].what if problems else f"no layers among {wanted}"
    server = {
        "steps": b.steps if b else 0,
        "layers_per_step": 0,
        "dsa_layers": 0,
        "method": b.method if b else "anchors",
        "steps_found": b.steps_found if b else 0,
        "batches": dict(b.batches) if b else {},
    }
    return Alignment(
        "inconclusive",
        tuple(Check(name, "inconclusive", detail) for name in CHECKS),
        server, (), (), (), (),
        problems=problems,
        settings={"case": options.case, "fail_on": sorted(options.fail_on)},
    )  # fmt: skip
