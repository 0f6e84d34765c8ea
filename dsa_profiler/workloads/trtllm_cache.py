"""TensorRT-LLM's KV cache manager and attention metadata for one case.

In generation every request brings one new token: `seq_lens` is 1, whatever is cached. `max_tokens`
is aligned to blocks for each sequence, or the allocator starves. `max_seq_len` of the cache sets
the width of the logits and so the top-k variant: the case's own, or the server's where given.
"""

from __future__ import annotations

from typing import Any

import torch

from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.model import Case
from dsa_profiler.workloads.trtllm_probe import Capabilities


def tokens_per_block(sm: int) -> int:
    """64 on Hopper, where FlashMLA and DeepGEMM's indexer need it; Blackwell takes only 32."""
    return 64 if sm < 100 else 32


def check(case: Case, sm: int, max_seq_len: int) -> None:
    """What the layer cannot run on this GPU, named before anything is allocated."""
    if sm < 90:
        raise EnvironmentFault(
            "sm-too-old",
            f"DSA needs SM 90 or newer, this GPU is SM {sm}",
            "use a Hopper or Blackwell GPU, or --workload reference",
        )
    if case.dtype == "fp8" and sm < 100:
        raise UsageError(
            "fp8-kv-hopper",
            f"{case.slug}: TensorRT-LLM's sparse attention takes a BF16 KV cache only on SM {sm}",
            "profile bfloat16 there; FP8 KV needs Blackwell, or --workload kernels",
        )
    if case.dtype == "float32":
        raise UsageError(
            "kv-dtype", f"{case.slug}: TensorRT-LLM has no float32 KV cache", "use bfloat16 or fp8"
        )
    if sm >= 100 and case.num_heads < 8:
        raise UsageError(
            "heads-blackwell",
            f"{case.slug}: on SM {sm} the layer's dispatch needs at least 8 local heads",
            "give 8 or more heads",
        )
    if max_seq_len < case.kv_len:
        raise UsageError(
            "max-seq-len",
            f"{case.slug} holds {case.kv_len} tokens, max_seq_len is {max_seq_len}",
            "give a max_seq_len at least as long as the longest case",
        )


def manager(found: Capabilities, config: Any, case: Case, sm: int, max_seq_len: int) -> Any:
    """A cache with room for the whole batch, its requests added."""
    block = tokens_per_block(sm)
    cache_config = found.get("KvCacheConfig")(
        max_tokens=case.batch_size * -(-max_seq_len // block) * block, enable_block_reuse=False
    )
    choose = found.get("get_kv_cache_manager_cls")
    with_cache = found.takes("get_kv_cache_manager_cls", "kv_cache_config")
    kind = choose(config, cache_config) if with_cache else choose(config)
    pretrained = config.pretrained_config
    sparse_keyword = found.one_of(
        "DSACacheManager", "sparse_attention_config", "sparse_attn_config"
    )
    more = {sparse_keyword: config.sparse_attention_config}
    if found.takes("DSACacheManager", "pretrained_config"):
        more["pretrained_config"] = pretrained
    dtypes = found.get("DataType")
    out = kind(
        cache_config,
        found.get("CacheType").SELFKONLY,
        num_layers=1,
        num_kv_heads=1,
        head_dim=pretrained.kv_lora_rank + pretrained.qk_rope_head_dim,
        tokens_per_block=block,
        max_seq_len=max_seq_len,
        max_batch_size=case.batch_size,
        mapping=config.mapping,
        dtype=dtypes.FP8 if case.dtype == "fp8" else dtypes.BF16,
        layer_mask=[True],
        model_config=config,
        **more,
    )
    out.add_dummy_requests(list(range(case.batch_size)), [case.kv_len] * case.batch_size)
    return out


def metadata(
    found: Capabilities, config: Any, layer: Any, cache: Any, case: Case, device: torch.device
) -> Any:
    """Attention metadata, prepared: block tables, slot mappings, DeepGEMM's schedule."""
    context = case.phase == "context"
    new = case.seq_len if context else 1
    cached = case.kv_len - new
    reuse = context and cached > 0
    features = found.get("AttentionRuntimeFeatures")
    out = _metadata_class(found, config)(
        max_num_requests=case.batch_size,
        max_num_tokens=case.tokens,
        kv_cache_manager=cache,
        mapping=config.mapping,
        seq_lens=torch.full((case.batch_size,), new, dtype=torch.int32),
        num_contexts=case.batch_size if context else 0,
        kv_cache_params=found.get("KVCacheParams")(
            use_cache=True, num_cached_tokens_per_seq=[cached] * case.batch_size
        ),
        request_ids=list(range(case.batch_size)),
        # New tokens only: with the prefix counted in, Blackwell's rope kernel reads out of bounds.
        prompt_lens=[new if context else cached] * case.batch_size,
        runtime_features=features(chunked_prefill=False, cache_reuse=reuse),
        enable_context_mla_with_cached_kv=reuse,
        workspace=torch.empty(0, dtype=torch.int8, device=device),
        **_sparse_metadata(found, config),
    )
    if hasattr(out, "indexer") or getattr(layer, "indexer", None) is not None:
        out.indexer = layer.indexer
    out.prepare()
    return out


def _metadata_class(found: Capabilities, config: Any) -> Any:
    choose = found.get("get_attention_backend")
    keyword = found.one_of(
        "get_attention_backend", "sparse_params", "sparse_attention_config", "sparse_attn_config"
    )
    sparse = config.sparse_attention_config
    if keyword == "sparse_params":
        sparse = sparse.to_sparse_params(pretrained_config=config.pretrained_config)
    return choose(config.attn_backend, **{keyword: sparse}).Metadata


def _sparse_metadata(found: Capabilities, config: Any) -> dict[str, Any]:
    keyword = found.one_of(
        "DSAtrtllmAttentionMetadata", "sparse_metadata_params", "sparse_attention_config"
    )
    sparse = config.sparse_attention_config
    if keyword == "sparse_metadata_params":
        sparse = sparse.to_sparse_metadata_params(pretrained_config=config.pretrained_config)
    return {keyword: sparse}
