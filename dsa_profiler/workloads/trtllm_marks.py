"""Which parts of TensorRT-LLM's layer carry which stage's mark.

A path starts at `mla` (the layer), `dsa` (the indexer's module), `attention` (the MLA class's
module) or `ops` (`torch.ops.trtllm`). Each stage lists the hooks of all eras; those that a package
lacks are passed over, and a stage of which none is there is reported: its kernels are then told by
name and order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from dsa_profiler.workloads.instrument import StageOf
from dsa_profiler.workloads.trtllm_probe import Capabilities

HOOKS: dict[str, tuple[str, ...]] = {
    "qkv_a_proj": ("mla.kv_a_proj_with_mqa",),
    "qkv_a_norm": ("mla.q_a_layernorm", "mla.kv_a_layernorm"),
    "q_b_proj": ("mla.q_b_proj",),
    "indexer_q_proj": ("mla.indexer.wq_b",),
    "indexer_k_proj": ("mla.indexer.wk", "mla.indexer.weights_proj"),
    "indexer_rope_norm": ("mla.indexer.k_norm", "mla.indexer.rotary_emb"),
    "indexer_quant": ("mla.indexer._prep_q_or_k", "mla.indexer._weight_scale"),
    "indexer_cache": ("mla.indexer._update_k_cache",),
    "mqa_logits": ("dsa.fp8_mqa_logits", "dsa.fp8_paged_mqa_logits"),
    "topk": ("ops.indexer_topk_prefill", "ops.indexer_topk_decode"),
    "index_convert": (
        "attention.transform_local_topk_and_prepare_pool_view",
        "dsa.transform_local_topk_and_prepare_pool_view",
    ),
    "rope_append": ("mla.mqa.mla_rope_append_paged_kv_assign_q",),
    "sparse_attn": ("attention.flash_mla_sparse_fwd", "dsa.flash_mla_sparse_fwd"),
    "o_proj": ("mla.o_proj",),
}

WEIGHT_CALLS = ("ops.bmm_out", "ops.cublas_mm", "attention.fp8_block_scaling_bmm_out")
"""Products that serve several stages: the weight among their arguments tells which."""

WEIGHTS = {
    "q_absorb": "mla.k_b_proj_trans",
    "v_up_proj": "mla.v_b_proj",
    "indexer_k_proj": "mla.indexer._fused_wk_wp_weight",
}


def root(found: Capabilities, layer: Any) -> SimpleNamespace:
    """What the paths start from."""
    where = "MLA" if "MLA" in found.where else "DeepseekV32Attention"
    return SimpleNamespace(
        mla=layer,
        dsa=found.module("Indexer"),
        attention=found.module(where),
        ops=torch.ops.trtllm,
    )


def table(start: SimpleNamespace) -> dict[str, StageOf]:
    """Path -> stage, for `instrument.patched`; only the paths that are there."""
    paths: dict[str, StageOf] = {
        path: stage for stage, hooks in HOOKS.items() for path in hooks if _at(start, path)
    }
    by_weight = _by_weight(start)
    return {**paths, **{path: by_weight for path in WEIGHT_CALLS if _at(start, path)}}


def unhooked(start: SimpleNamespace) -> tuple[str, ...]:
    """Stages without any mark in this package."""
    by_weight = any(_at(start, path) for path in WEIGHT_CALLS)
    hooked = {s for s, hooks in HOOKS.items() if any(_at(start, path) for path in hooks)}
    hooked |= {s for s, path in WEIGHTS.items() if by_weight and _at(start, path) is not None}
    return tuple(s for s in (*HOOKS, *WEIGHTS) if s not in hooked)


def _by_weight(start: SimpleNamespace) -> Callable[..., str | None]:
    """Views share their weight's memory, transposed or not."""
    stages: Mapping[int, str] = {
        weight.data_ptr(): stage
        for stage, path in WEIGHTS.items()
        if isinstance(weight := _at(start, path), torch.Tensor)
    }

    def stage_of(*args: Any, **kwargs: Any) -> str | None:
        return next((stages[p] for p in _pointers((*args, *kwargs.values())) if p in stages), None)

    return stage_of


def _pointers(values: tuple[Any, ...]) -> Iterator[int]:
    return (value.data_ptr() for value in values if isinstance(value, torch.Tensor))


def _at(start: Any, path: str) -> Any:
    for name in path.split("."):
        start = getattr(start, name, None)
    return start
