"""Known reasons for a difference, those that the evidence of an alignment fits.

Each reason of `expected.toml` has one test here. A reason explains; it never turns a fail into a
pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsa_profiler.analysis import names
from dsa_profiler.analysis.expected import Setting, reasons
from dsa_profiler.analysis.pairing import Item
from dsa_profiler.analysis.slots import Comparison, Lone
from dsa_profiler.analysis.variants import Time

NOTABLE = 1.3
"""A ratio from which a slot's time counts as different for a reason's sake."""
PADDING = ("FillFunctor", "[memset]", "CatArrayBatchedCopy", "copy_kernel")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the reasons look at."""

    found: Comparison
    left: Setting
    right: Setting
    left_time: Time
    right_time: Time
    model_is_deepseek: bool = False

    @property
    def alone(self) -> tuple[Lone, ...]:
        return (*self.found.missing, *self.found.extra)

    def stages_alone(self, lone: tuple[Lone, ...]) -> set[str]:
        return {x.stage for x in lone}

    def off(self, stage: str) -> bool:
        return any(
            s.stage == stage and not 1 / NOTABLE <= s.ratio <= NOTABLE for s in self.found.slots
        )

    def alone_like(self, *parts: str) -> bool:
        return any(p.lower() in x.item.word.name.lower() for x in self.alone for p in parts)


def known(evidence: Evidence) -> list[dict[str, str]]:
    """The reasons that fit, in the order of the data file."""
    texts = reasons()
    return [{"name": n, "text": texts[n]} for n in texts if n in FITS and FITS[n](evidence)]


def _max_seq_len(e: Evidence) -> bool:
    decode = "generation" in (e.left.phase, e.right.phase)
    return decode and (e.off("topk") or e.off("mqa_logits") or _variant_differs(e, "topk"))


def _variant_differs(e: Evidence, stage: str) -> bool:
    return any(
        s.stage == stage and _template(s.left_item) != _template(s.right_item)
        for s in e.found.slots
    )


def _template(item: Item) -> str:
    return names.parse(item.word.name).template


def _tensor_parallel(e: Evidence) -> bool:
    return e.alone_like("all_gather", "allgather", "allreduce", "all_reduce", "nccl") or (
        e.left.tp is not None and e.right.tp is not None and e.left.tp != e.right.tp
    )


def _head_padding(e: Evidence) -> bool:
    return e.alone_like(*PADDING) and "90" in (e.left.sm, e.right.sm)


def _graph_or_eager(e: Evidence) -> bool:
    return e.left.graph is not None and e.right.graph is not None and e.left.graph != e.right.graph


def _pdl(e: Evidence) -> bool:
    return (e.left_time.pdl > 0.5) != (e.right_time.pdl > 0.5)


def _next_n(item: Item) -> str:
    return _template(item).split(",")[0].strip().rstrip("u")


def _mtp(e: Evidence) -> bool:
    return any(
        s.stage == "mqa_logits"
        and "paged" in s.left_item.word.base
        and "paged" in s.right_item.word.base
        and _next_n(s.left_item) != _next_n(s.right_item)
        for s in e.found.slots
    )


def _short(e: Evidence) -> bool:
    scoring = {"mqa_logits", "topk"}
    return scoring <= e.stages_alone(e.found.missing) or scoring <= e.stages_alone(e.found.extra)


def _chunked(e: Evidence) -> bool:
    again = [x for x in e.alone if x.stage in ("mqa_logits", "topk")]
    paired = {s.stage for s in e.found.slots}
    return e.alone_like("gather_k_cache", "gather_indexer") or any(
        x.stage in paired and "context" in (e.left.phase, e.right.phase) for x in again
    )


def _quantisation(e: Evidence) -> bool:
    renamed = any(s.how == "renamed" and s.left_item.word.role == "gemm" for s in e.found.slots)
    return renamed or any(x.item.word.family == "quant" for x in e.alone)


def _autotuner(e: Evidence) -> bool:
    return any(s.how == "retuned" for s in e.found.slots) or any(
        x.item.word.role == "gemm_helper" for x in e.alone
    )


def _prepare(e: Evidence) -> bool:
    return "schedule" in e.stages_alone(e.alone)


def _kv_dtype(e: Evidence) -> bool:
    return any(s.stage == "sparse_attn" and s.how == "renamed" for s in e.found.slots) or (
        "sparse_attn_combine" in e.stages_alone(e.alone)
    )


def _fused_norm(e: Evidence) -> bool:
    return any(x.item.word.role == "norm" for x in e.alone)


def _shared_indexer(e: Evidence) -> bool:
    part = {x.stage for x in e.found.missing if not x.everywhere}
    return {"mqa_logits", "topk", "indexer_cache"} <= part and not e.model_is_deepseek


FITS: dict[str, Callable[[Evidence], bool]] = {
    "max_seq_len": _max_seq_len,
    "tensor_parallel": _tensor_parallel,
    "head_padding": _head_padding,
    "graph_or_eager": _graph_or_eager,
    "pdl": _pdl,
    "mtp": _mtp,
    "short_sequence_skip": _short,
    "chunked_prefill": _chunked,
    "quantisation": _quantisation,
    "autotuner": _autotuner,
    "data_dependent_topk": lambda e: e.off("topk"),
    "prepare": _prepare,
    "kv_dtype": _kv_dtype,
    "fused_norm": _fused_norm,
    "hadamard": lambda e: e.alone_like("hadamard"),
    "shared_indexer": _shared_indexer,
}
"""Reason -> its test. A test of the suite holds this table and the data file together."""
