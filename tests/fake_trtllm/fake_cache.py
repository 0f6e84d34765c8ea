"""The stand-in's cache manager and attention metadata, with the rules of the real ones."""

from __future__ import annotations

import dataclasses

import torch
from fake_config import SM, CacheType, DataType, DSAMetadataParams, DSAParams

from dsa_profiler.workloads.core import TorchCore

MISSING = object()


class _CacheManager:
    def _begin(self, config, kind, sparse, *, tokens_per_block, max_seq_len, max_batch_size, dtype):
        assert kind is CacheType.SELFKONLY
        assert tokens_per_block == (64 if SM < 100 else 32), "the kernels of this SM need it"
        assert dtype is DataType.BF16 or SM >= 100, "FlashMLA asserts a BF16 kv on SM90"
        assert config.max_tokens % tokens_per_block == 0, "unaligned max_tokens starves sequences"
        self.free = config.max_tokens // tokens_per_block
        self.tokens_per_block, self.max_seq_len = tokens_per_block, max_seq_len
        self.max_batch_size, self.index_head_dim = max_batch_size, sparse.index_head_dim
        self.quant_block_size = 128
        self.closed = False

    def add_dummy_requests(self, request_ids, token_nums):
        assert len(request_ids) == len(token_nums) <= self.max_batch_size
        for tokens in token_nums:
            assert tokens <= self.max_seq_len
            self.free -= -(-tokens // self.tokens_per_block)
            assert self.free >= 0, "Can't allocate new blocks. No free blocks left."
        self.token_nums = token_nums

    def shutdown(self):
        self.closed = True


class CacheManagerA(_CacheManager):
    def __init__(
        self, kv_cache_config, kv_cache_type, *, num_layers, num_kv_heads, head_dim,
        tokens_per_block, max_seq_len, max_batch_size, mapping, dtype, spec_config=None,
        layer_mask=None, max_num_tokens=8192, model_config=None, max_beam_width=1,
        sparse_attn_config,
    ):  # fmt: skip
        self._begin(
            kv_cache_config, kv_cache_type, sparse_attn_config, tokens_per_block=tokens_per_block,
            max_seq_len=max_seq_len, max_batch_size=max_batch_size, dtype=dtype,
        )  # fmt: skip


class CacheManagerD(_CacheManager):
    def __init__(
        self, kv_cache_config, kv_cache_type, *, num_layers, num_kv_heads, head_dim,
        tokens_per_block, max_seq_len, max_batch_size, mapping, dtype, spec_config=None,
        layer_mask=None, max_num_tokens=8192, model_config=None, max_beam_width=1,
        sparse_attention_config, pretrained_config,
    ):  # fmt: skip
        assert pretrained_config.kv_lora_rank + pretrained_config.qk_rope_head_dim == head_dim
        self._begin(
            kv_cache_config, kv_cache_type, sparse_attention_config,
            tokens_per_block=tokens_per_block, max_seq_len=max_seq_len,
            max_batch_size=max_batch_size, dtype=dtype,
        )  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class _Metadata:
    max_num_requests: int
    max_num_tokens: int
    kv_cache_manager: object
    mapping: object
    seq_lens: torch.Tensor
    num_contexts: int
    kv_cache_params: object
    request_ids: list
    prompt_lens: list
    runtime_features: object
    workspace: torch.Tensor
    enable_flash_mla: bool = False
    position_ids: object = None
    cross: object = None
    all_rank_num_tokens: object = None
    enable_context_mla_with_cached_kv: bool = False
    indexer: object = None
    prepared: bool = dataclasses.field(init=False, default=False)

    def prepare(self):
        assert self.seq_lens.dtype is torch.int32
        assert self.seq_lens.device.type == "cpu"
        cached = self.kv_cache_params.num_cached_tokens_per_seq
        batch, new = len(self.request_ids), int(self.seq_lens[0])
        assert bool((self.seq_lens == new).all())
        assert len(cached) == len(self.prompt_lens) == len(self.seq_lens) == batch
        if self.num_contexts == 0:
            assert new == 1, "max_input_uncached_seq_len > 0: a generation request brings one token"
        else:
            assert self.prompt_lens == [new] * batch, "prompt_lens counts new tokens only"
            if cached[0]:
                assert self.enable_context_mla_with_cached_kv, "slot mapping of cached keys"
                assert self.runtime_features.cache_reuse
        assert self.kv_cache_manager.token_nums == [c + new for c in cached]
        assert batch * new <= self.max_num_tokens
        self.check_sparse()
        assert self.indexer is not None, "the metadata needs the indexer before prepare()"
        self.batch, self.new, self.past = batch, new, cached[0]
        self.core = self.indexer.make_core(self)
        self.prepared = True


@dataclasses.dataclass(kw_only=True)
class MetadataA(_Metadata):
    sparse_attention_config: object = None

    def check_sparse(self):
        assert self.sparse_attention_config.index_topk


@dataclasses.dataclass(kw_only=True)
class MetadataD(_Metadata):
    sparse_metadata_params: object = None

    def check_sparse(self):
        assert isinstance(self.sparse_metadata_params, DSAMetadataParams)


def backend(metadata, keyword):
    """`get_attention_backend`, whose second parameter was renamed twice."""

    class DSATrtllmAttention:
        Metadata = metadata

    def chosen(name, sparse):
        assert name == "TRTLLM"
        assert isinstance(sparse, DSAParams) is (keyword == "sparse_params")
        return DSATrtllmAttention

    if keyword == "sparse_attn_config":

        def get_attention_backend(backend_name, sparse_attn_config=None):
            return chosen(backend_name, sparse_attn_config)

    elif keyword == "sparse_attention_config":

        def get_attention_backend(backend_name, sparse_attention_config=None):
            return chosen(backend_name, sparse_attention_config)

    else:

        def get_attention_backend(backend_name, sparse_params=None):
            return chosen(backend_name, sparse_params)

    return get_attention_backend


def core_of(shape, metadata):
    """A filled reference core: the past is random, as it is for the real dummy requests."""
    core = TorchCore(shape, metadata.batch, metadata.past, metadata.new)
    core.rows.normal_(generator=torch.Generator().manual_seed(1))
    core.keys.copy_(torch.randn(core.keys.shape, generator=torch.Generator().manual_seed(2)))
    core.key_scale.fill_(1.0)
    return core
