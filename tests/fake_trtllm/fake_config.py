"""Configs, enums and bindings of the stand-in, with the signatures of each era."""

from __future__ import annotations

import dataclasses
import os
from enum import Enum

SM = int(os.environ.get("FAKE_TRTLLM_SM", "90"))


def get_sm_version():
    return SM


class DataType(Enum):
    BF16 = "bf16"
    FP8 = "fp8"


class CacheType(Enum):
    SELFKONLY = 1


class QuantAlgo(Enum):
    FP8 = "FP8"
    FP8_BLOCK_SCALES = "FP8_BLOCK_SCALES"


@dataclasses.dataclass
class QuantDataclass:
    quant_algo: object = None
    kv_cache_quant_algo: object = None
    group_size: int = 128
    exclude_modules: object = None


class QuantModel:
    """Like a pydantic model: no dataclass, copied with model_copy."""

    def __init__(self, **fields):
        self.__dict__.update(
            {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128,
             "exclude_modules": None, **fields}
        )  # fmt: skip

    def model_copy(self, *, update):
        unknown = set(update) - set(self.__dict__)
        assert not unknown, f"unknown fields {unknown}"
        return type(self)(**{**self.__dict__, **update})


class Mapping:
    def __init__(self, world_size=1, rank=0, tp_size=1, pp_size=1):
        assert (world_size, rank, tp_size, pp_size) == (1, 0, 1, 1)


@dataclasses.dataclass
class KvCacheConfig:
    max_tokens: int | None = None
    enable_block_reuse: bool = True


@dataclasses.dataclass
class KVCacheParams:
    use_cache: bool
    num_cached_tokens_per_seq: list | None = None


@dataclasses.dataclass
class AttentionRuntimeFeatures:
    chunked_prefill: bool = False
    cache_reuse: bool = False


@dataclasses.dataclass(frozen=True)
class DSAMetadataParams:
    index_topk: int


@dataclasses.dataclass(frozen=True)
class DSAParams:
    index_topk: int


@dataclasses.dataclass
class SparseConfigA:
    algorithm: str = "dsa"
    index_n_heads: int | None = None
    index_head_dim: int | None = None
    index_topk: int | None = None
    indexer_max_chunk_size: int | None = None
    skip_indexer_for_short_seqs: bool = True


@dataclasses.dataclass
class SparseConfigC(SparseConfigA):
    q_split_threshold: int = 8192
    indexer_rope_interleave: bool = False


@dataclasses.dataclass
class SparseConfigD(SparseConfigC):
    def to_sparse_metadata_params(self, *, pretrained_config):
        assert pretrained_config.index_topk == self.index_topk
        return DSAMetadataParams(self.index_topk)

    def to_sparse_params(self, *, pretrained_config):
        return DSAParams(self.index_topk)


class ModelConfig:
    """Frozen after construction where the real one is; `extra_attrs` is its own."""

    frozen = False
    quant = QuantDataclass

    def __init__(
        self,
        *,
        pretrained_config,
        mapping,
        sparse_attention_config=None,
        quant_config=None,
        attn_backend="TRTLLM",
        skip_create_weights_in_init=False,
        max_num_tokens=8192,
    ):
        self.pretrained_config = pretrained_config
        self.mapping = mapping
        self.sparse_attention_config = sparse_attention_config
        self.quant_config = quant_config or self.quant()
        self.attn_backend = attn_backend
        self.skip_create_weights_in_init = skip_create_weights_in_init
        self.max_num_tokens = max_num_tokens
        self.extra_attrs = {}
        self._sealed = self.frozen

    def __setattr__(self, name, value):
        if self.__dict__.get("_sealed"):
            raise AttributeError(f"Cannot modify ModelConfig.{name} - instance is frozen")
        object.__setattr__(self, name, value)


class FrozenModelConfig(ModelConfig):
    frozen = True
    quant = QuantModel
