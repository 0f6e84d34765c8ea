"""Results and sessions for tests of exports and pages: plausible, deterministic, any size."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from dsa_profiler import plan
from dsa_profiler.errors import Warn
from dsa_profiler.marks import GROUP_OF
from dsa_profiler.model import Case, load_model
from dsa_profiler.results import (
    CaseResult,
    Coverage,
    KernelStat,
    KernelTotal,
    RangeTotal,
    Results,
    Spread,
    StageStat,
    Timing,
    TraceSummary,
)
from dsa_profiler.session import Chunk, Outcome, Session, save

GEMM = "nvjet_tst_128x256_64x4_2x1_v_bz_TNT"
KERNELS: dict[str, tuple[str, ...]] = {
    "qkv_a_proj": (GEMM,),
    "qkv_a_norm": ("void vllm::rms_norm_kernel<c10::BFloat16, 8, 2>(c10::BFloat16*, float)",),
    "q_b_proj": ("nvjet_tst_192x128_64x5_1x2_h_bz_TNT",),
    "q_absorb": ("nvjet_tst_64x128_64x8_2x1_v_badd_NNT",),
    "indexer_q_proj": ("nvjet_tst_256x128_64x4_1x2_h_bz_TNT",),
    "indexer_rope_norm": (
        "void at::native::vectorized_layer_norm_kernel<float, float>(int, float const*)",
        "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl<at::native::"
        "BinaryFunctor<float, float, float> >(at::TensorIteratorBase&)::{lambda(int)#1}>(int)",
    ),
    "indexer_quant": ("per_token_group_quant_8bit_kernel<c10::BFloat16, c10::Float8_e4m3fn>",),
    "mqa_logits": (
        "void deep_gemm::sm90_fp8_mqa_logits<64u, 128u, false, 2u, 256u, 3u>(unsigned int)",
    ),
    "topk": ("void vllm::topKPerRowDecode<512, true, false, false>(float const*, int*)",),
    "sparse_attn": (
        "void sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<576, false> >()",
    ),
    "sparse_attn_combine": ("void smxx::decode::flash_fwd_mla_combine_kernel<bf16, 512, 8>()",),
    "v_up_proj": ("nvjet_tst_128x64_64x8_1x1_h_bz_NNT",),
    "o_proj": ("nvjet_tst_128x192_64x4_2x1_v_bz_TNT",),
    "memory": ("[memcpy DtoD]",),
    "unknown": ("void someone_elses_kernel<int>(int*)",),
}


def stage_ns(case: Case, stage: str) -> float:
    """A plausible time: projections by tokens, logits by pairs, a step where top-k begins."""
    tokens, kv = case.tokens, case.kv_len
    heads = case.num_heads / 128
    group = GROUP_OF[stage]
    if group == "projections":
        return 6_000 + 180 * tokens * heads
    if stage == "mqa_logits":
        return 0.0 if kv <= 2048 else 4_000 + 0.02 * tokens * kv
    if group == "topk":
        return 0.0 if kv <= 2048 else 9_000 + 0.01 * tokens * kv
    if group == "sparse_attn":
        return 8_000 + 1.1 * tokens * min(kv, 2048) * max(heads, 0.5)
    return 2_500 + 20 * tokens


def case_result(
    case: Case, iterations: int = 5, timing: Timing = "gpu", scale: float = 1.0, seed: int = 0
) -> CaseResult:
    """One case whose stages add up, with a little noise drawn from (`seed`, slug)."""
    rng = random.Random(f"{seed}:{case.slug}")
    stages, kernels = [], []
    for stage, names in KERNELS.items():
        total = stage_ns(case, stage) * scale
        if not total:
            continue
        stages.append((stage, total, len(names)))
        for name in names:
            each = round(total / len(names))
            kernels.append(
                KernelStat(name, stage, 1.0, each, round(each * 0.97), round(each * 1.06))
            )
    busy = sum(total for _, total, _ in stages)
    spans = [round(busy * 1.08 * (1 + 0.02 * abs(rng.gauss(0, 1)))) for _ in range(iterations)]
    ordered = sorted(spans)
    median = float(ordered[len(ordered) // 2])
    spread = Spread(median, ordered[0], ordered[-1], ordered[0], ordered[-1])
    warnings = ()
    if case.batch_size == 1 and case.seq_len < 32:
        warnings = (Warn("first-iteration", "iteration 0 took 2.1 x the median", "raise --warmup"),)
    return CaseResult(
        case=case,
        iterations=iterations,
        span_ns=spread,
        busy_ns=busy,
        overlap_ns=0.0,
        gap_ns=median - busy,
        stages=tuple(
            StageStat(stage, GROUP_OF[stage], float(count), total, total / busy)
            for stage, total, count in stages
        ),
        kernels=tuple(kernels),
        warnings=warnings,
        timing=timing,
        iteration_spans_ns=tuple(spans),
        window_ns=(1_000_000, 1_000_000 + sum(spans)),
    )


def results(
    cases: Iterable[Case], timing: Timing = "gpu", scale: float = 1.0, seed: int = 0
) -> Results:
    """Results over the cases; totals are sums over the cases' kernels."""
    rows = tuple(case_result(c, timing=timing, scale=scale, seed=seed) for c in cases)
    totals: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for kernel in row.kernels:
            totals.setdefault((kernel.name, kernel.stage), []).append(kernel.median_ns)
    kernel_totals = sorted(
        (
            KernelTotal(n, s, len(v), round(sum(v)), round(min(v)), sorted(v)[len(v) // 2],
                        round(max(v)))
            for (n, s), v in totals.items()
        ),
        key=lambda k: (-k.total_ns, k.name),
    )  # fmt: skip
    count = sum(k.calls for k in kernel_totals)
    total_ns = sum(k.total_ns for k in kernel_totals)
    return Results(
        trace=TraceSummary(
            producer="nsys 2025.3.1.90",
            schema_version="3.20.2",
            gpus=("NVIDIA H200",) if timing == "gpu" else (),
            processes=1,
            kernels=count,
            launches=count + 7,
            ranges=4 * count,
            duration_ns=total_ns * 3,
        ),
        coverage=Coverage(
            kernels=count,
            attributed=count - 2,
            unattributed=2,
            unknown_kernels=("void someone_elses_kernel<int>(int*)",),
            total_ns=total_ns,
            attributed_ns=total_ns - 5_000,
            reasons={"no_launch": 2},
            reasons_ns={"no_launch": 5_000},
            provenance={"mark": count - 2},
        ),
        kernel_totals=tuple(kernel_totals),
        range_totals=tuple(
            RangeTotal(f"dsa:stage {k.stage}", k.name, k.calls, k.total_ns) for k in kernel_totals
        ),
        cases=rows,
        warnings=(Warn("trace-clock", "the clock was not locked", "lock it with nvidia-smi -lgc"),),
    )


def cases_of(phase: str = "generation", heads: Sequence[int] = (128,)) -> tuple[Case, ...]:
    """A small grid on both sides of top-k."""
    return tuple(
        Case(phase, batch, seq, h)  # type: ignore[arg-type]
        for h in heads
        for seq in (15, 1023, 2047, 4095)
        for batch in (1, 2, 8)
    )


def standard_cases(phase: str = "generation") -> tuple[Case, ...]:
    """The whole standard grid: 181 generation cases, 110 context cases."""
    return plan.build([plan.standard(phase)]).cases  # type: ignore[arg-type]


def session(cases: Iterable[Case], **changes: object) -> Session:
    """A finished session over the cases. `changes` replaces fields."""
    rows = tuple(cases)
    fields: dict[str, object] = {
        "name": "sample",
        "created": "2026-01-02T03:04:05+00:00",
        "workload": "kernels",
        "tracer": "nsys",
        "model": load_model("deepseek-v3.2"),
        "plan": plan.Plan(rows),
        "settings": {"device": "cuda", "warmup": 2, "iterations": 5, "seed": 0},
        "environment": {
            "python": "3.12.3",
            "system": "Linux x86_64",
            "cpu": "Intel Xeon Platinum 8480C",
            "gpus": [
                {"name": "NVIDIA H200", "sm": 90, "driver": "580.65.06", "memory_mib": 143771}
            ],
            "nsys": "2025.3.1.90",
            "packages": {"torch": "2.13.0", "nvtx": "0.2.10"},
        },
        "chunks": (Chunk("0000", rows, "chunks/0000/trace.sqlite"),),
        "outcomes": {c: Outcome("done", "0000", untraced_ns=90_000.0) for c in rows},
    }
    return Session(**{**fields, **changes})  # type: ignore[arg-type]


def floored(found: Results, owner: Session, system: str = "h200_sxm") -> Results:
    """The same results with the roofline of a known system."""
    from dsa_profiler.analysis import roofline, systems

    return roofline.attach(found, owner.model, systems.load(system))


def disk_session(folder: Path, cases: Sequence[Case], seed: int = 0, iterations: int = 5) -> Path:
    """A session on disk: a synthetic trace of the cases in one chunk, and its manifest."""
    from trace_factory import dsa_trace, export

    trace = folder / "chunks" / "0000" / "trace.sqlite"
    trace.parent.mkdir(parents=True)
    export(dsa_trace(tuple(cases), iterations=iterations, seed=seed), trace)
    outcomes = {c: Outcome("done", "0000") for c in cases}
    save(folder, session(cases, name=folder.name, outcomes=outcomes))
    return folder
