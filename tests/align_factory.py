"""Pairs of synthetic recordings, a standalone layer and a server, with a planted difference.

The kernel names are real (TensorRT-LLM on SM90); the times are made up. The server's host launches
what surrounds the layer too: norms, collectives, experts or a dense FFN, an embedding, sampling.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from trace_factory import Program, Thread

from dsa_profiler import marks
from dsa_profiler.columns import Trace
from dsa_profiler.model import Case

DECODE_CASE = Case("generation", 64, 4095)
PREFILL_CASE = Case("context", 1, 4096)


@dataclass(frozen=True)
class K:
    """One kernel of a layer: its true stage, name, ns and stream."""

    stage: str
    name: str
    ns: int
    stream: int = 7


NVJET = "nvjet_tst_{}x{}_64x4_1x2_h_bz_coopB_TNT"
NORM = "void flashinfer::norm::RMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16 *)"
CAT = (
    "void at::native::<unnamed>::CatArrayBatchedCopy_aligned16_contig<at::native::<unnamed>::"
    "OpaqueType<(unsigned int)2>, unsigned int, (int)2, (int)128, (int)1>(char *)"
)
ROPE = (
    "void tensorrt_llm::kernels::applyMLARopeAppendPagedKVAssignQKernel<__nv_bfloat16, 256, 512, "
    "64, tensorrt_llm::kernels::KVBlockArray>(tensorrt_llm::kernels::KVBlockArray)"
)
SPARSE = (
    "void sm90::fwd::sparse_attn_fwd_kernel<sm90::fwd::KernelTemplate<(int)576, (bool)0>>"
    "(const SparseAttnFwdParams)"
)
_HEAD = (
    K("qkv_a_proj", NVJET.format(64, 32), 9_000),
    K("qkv_a_norm", NORM, 2_600),
    K("qkv_a_norm", NORM, 2_400),
    K("q_b_proj", NVJET.format(128, 64), 14_000),
    K("indexer_q_proj", NVJET.format(64, 64), 11_000),
    K(
        "indexer_k_proj",
        "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x64_16x6_tn_align4>(Params)",
        7_000,
        13,
    ),
    K("indexer_rope_norm", "triton_per_fused__to_copy_native_layer_norm_0", 2_900),
    K(
        "indexer_rope_norm",
        "void flashinfer::BatchQKApplyRotaryPosIdsCosSinCacheHeadParallelismKernel<false, 64u>(x)",
        3_100,
    ),
    K("indexer_quant", "void tensorrt_llm::kernels::fusedCatFp8Kernel<(bool)1>(x)", 3_300),
    K("indexer_quant", "void tensorrt_llm::kernels::fusedCatFp8Kernel<(bool)1>(x)", 2_200, 13),
    K("indexer_quant", "triton_poi_fused_mul_squeeze_0", 2_000, 13),
    K("indexer_cache", "tensorrt_llm::kernels::indexerKCacheScatterUnifiedKernel(x)", 2_800),
)
_TAIL = (
    K("index_convert", "_convert_req_index_to_global_index_kernel_with_stride_factor", 3_000),
    K("rope_append", ROPE, 5_000),
    K("q_absorb", NVJET.format(128, 8), 13_000),
    K("q_absorb", CAT, 4_000),
    K("sparse_attn", SPARSE, 48_000),
    K("v_up_proj", NVJET.format(64, 128), 12_000),
    K("o_proj", NVJET.format(192, 128), 31_000),
)
DECODE = (
    *_HEAD,
    K("mqa_logits", "void deep_gemm::sm90_fp8_paged_mqa_logits<1u, 64u, 128u, 64u>(x)", 21_000),
    K("topk", "void tensorrt_llm::kernels::topKPerRowDecode<512, true, false>(x)", 26_000),
    *_TAIL,
)
PREFILL = (
    *_HEAD,
    K("mqa_logits", "void deep_gemm::sm90_fp8_mqa_logits<64u, 128u, false>(x)", 210_000),
    K("mqa_logits", "void deep_gemm::smxx_clean_logits<1u, 64u>(x)", 20_000),
    K("topk", "void tensorrt_llm::kernels::topKPerRowPrefill<(int)512, (bool)0>(x)", 260_000),
    *_TAIL,
)
SHORT_DECODE = (*_HEAD, *_TAIL)

ALLREDUCE = "void tensorrt_llm::kernels::ar_fusion::allreduce_fusion_kernel_oneshot_lamport<X>(X)"
DENSE = (
    K("", NORM, 2_500),
    K("", NVJET.format(256, 128), 60_000),
    K("", "void tensorrt_llm::kernels::silu_and_mul_kernel<__nv_bfloat16>(x)", 5_000),
    K("", NVJET.format(128, 128), 40_000),
    K("", NORM, 2_500),
)
MOE = (
    K("", ALLREDUCE, 9_000),
    K("", NVJET.format(8, 64), 6_000),
    K("", "void tensorrt_llm::kernels::deepseek_v3_topk_kernel<float, float, int>(x)", 4_000),
    K("", "void moe::dev::routing::routingIndicesClusterKernel<X>(X)", 5_000),
    K("", "void cutlass_kernels::fused_moe::moe_gemm_kernel<X>(X)", 90_000),
    K("", "void tensorrt_llm::kernels::finalizeMoeRoutingKernel<X>(X)", 6_000),
    K("", ALLREDUCE, 9_000),
)
LAST = (*MOE[:-1], K("", NORM, 2_500))
EMBED = (
    K("", "void at::native::<unnamed>::indexSelectSmallIndex<x>(x)", 3_000),
    K("", NORM, 2_500),
)
SAMPLE = (
    K("", NVJET.format(320, 128), 80_000),
    K("", "void at::native::<unnamed>::cunn_SoftMaxForward<4, float>(x)", 7_000),
    K("", "void at::native::reduce_kernel<512, 1, ArgMaxOps<float>>(x)", 6_000),
)

STYLES = {
    "trtllm": "[Executor] _forward_step {n}: {c} ctx reqs, {g} gen reqs",
    "trtllm_tokens": "[Executor] _forward_step {n}: {c} ctx reqs, {t} ctx tokens, {g} gen reqs",
    "vllm": "execute_context_{c}({t})_generation_{g}({g})",
    "vllm_kv": "execute_{n}_context_{c}(sq{t}sk{t})_generation_{g}(sq{g}sk{k})",
    "sglang": None,
    "none": None,
}


@dataclass(frozen=True)
class Server:
    """How the server was recorded. `mode`: eager, node (captured before the window), captured
    (inside it, under marks), marks (eager, marked), or hidden (whole-graph records).
    """

    layers: int = 5
    steps: int = 4
    ranks: int = 1
    mode: str = "node"
    style: str = "trtllm"
    case: Case = DECODE_CASE
    dense_layers: int = 2
    noise: float = 0.04
    slow_rank: float = 1.0
    other_steps: Sequence[tuple[int, int]] = field(default_factory=tuple)
    """(context requests, generation requests) of further steps, run on the same layer."""
    surroundings: bool = True


def standalone(
    kernels: Sequence[K] = DECODE,
    case: Case = DECODE_CASE,
    iterations: int = 5,
    marked: bool = True,
    noise: float = 0.04,
    seed: int = 1,
    **info: Any,
) -> Trace:
    """One layer under our marks, eager."""
    rng = random.Random(seed)
    program = Program()
    thread = program.thread(pid=900)
    with ExitStack() as case_range:
        if marked:
            case_range.enter_context(thread.range(marks.case(case.slug)))
        for i in range(iterations + 1):
            with ExitStack() as ranges:
                if marked:
                    text = marks.iteration(i - 1) if i else marks.warmup(0)
                    ranges.enter_context(thread.range(text))
                _launch(thread, kernels, rng, noise, staged=marked)
            thread.now += 400_000
    return program.trace(**info)


def server(
    kernels: Sequence[K] = DECODE,
    how: Server = Server(),
    per_layer: dict[int, Sequence[K]] | None = None,
    seed: int = 2,
    **info: Any,
) -> Trace:
    """A server's trace; `per_layer` gives some layers other kernels."""
    program = Program()
    for rank in range(how.ranks):
        rng = random.Random(seed + rank)
        thread = program.thread(pid=2000 + rank, device=0)
        scale = how.slow_rank if rank == how.ranks - 1 else 1.0
        whole = _step_kernels(kernels, how, per_layer or {}, scale)
        replayed = None
        if how.mode in ("node", "captured", "hidden"):
            with thread.capture() as replayed:
                _launch(thread, whole, rng, how.noise, staged=how.mode == "captured")
        batch = how.case.batch_size
        wanted = (batch, 0) if how.case.phase == "context" else (0, batch)
        kinds = [*how.other_steps, *[wanted] * how.steps]
        rng.shuffle(kinds)
        for n, (context, generation) in enumerate(kinds):
            text = _step_text(how, n + 100, context, generation)
            with ExitStack() as ranges:
                if text:
                    ranges.enter_context(thread.range(text))
                thread.launch("[memcpy HtoD]", 1_500, kind=1)
                if replayed is not None and (context, generation) == wanted:
                    thread.replay(replayed, visible=how.mode != "hidden")
                else:
                    _launch(thread, whole, rng, how.noise, staged=how.mode == "marks")
            thread.now += 500_000
    if how.mode == "node":
        program.nodes.clear()
    return program.trace(graph_mode="graph" if how.mode == "hidden" else "node", **info)


def _step_text(how: Server, n: int, context: int, generation: int) -> str:
    tokens = context * how.case.seq_len
    if how.style == "sglang":
        if context and generation:
            return f"step[MIXED bs={context + generation} ext={context} dec={generation}]"
        if context:
            return f"step[EXTEND bs={context} toks={tokens}]"
        return f"step[DECODE bs={generation}]"
    style = STYLES[how.style]
    kv = generation * how.case.kv_len
    return style.format(n=n, c=context, g=generation, t=tokens, k=kv) if style else ""


def _step_kernels(
    kernels: Sequence[K], how: Server, per_layer: dict[int, Sequence[K]], scale: float
) -> list[K]:
    out: list[K] = list(EMBED) if how.surroundings else []
    for n in range(how.layers):
        out += per_layer.get(n, kernels)
        if how.surroundings:
            out += DENSE if n < how.dense_layers else LAST if n == how.layers - 1 else MOE
    out += SAMPLE if how.surroundings else []
    return [replace(k, ns=int(k.ns * scale)) for k in out]


def _launch(
    thread: Thread, kernels: Sequence[K], rng: random.Random, noise: float, staged: bool
) -> None:
    for k in kernels:
        ns = max(1, int(k.ns * rng.uniform(1 - noise, 1 + noise)))
        with ExitStack() as ranges:
            if staged and k.stage:
                ranges.enter_context(thread.range(marks.stage(k.stage)))
            thread.launch(k.name, ns, stream=k.stream, kind=1 if k.name.startswith("[") else 0)


def slower(kernels: Sequence[K], stage: str, factor: float) -> list[K]:
    return [replace(k, ns=int(k.ns * factor)) if k.stage == stage else k for k in kernels]


def without(kernels: Sequence[K], place: int) -> list[K]:
    return [k for n, k in enumerate(kernels) if n != place]


def with_extra(kernels: Sequence[K], place: int, extra: K) -> list[K]:
    return [*kernels[:place], extra, *kernels[place:]]


def retiled(kernels: Sequence[K], seed: int = 0) -> list[K]:
    """Other tile names for every cuBLAS product, as another autotuner run would pick."""
    rng = random.Random(seed)
    return [
        replace(k, name=NVJET.format(rng.choice((16, 24, 48, 256)), rng.choice((24, 48, 96))))
        if k.name.startswith("nvjet")
        else k
        for k in kernels
    ]
