"""The layer of the stand-in: TensorRT-LLM's parts and names over the reference's arithmetic."""

from __future__ import annotations

import os
import sys
import types
from contextlib import contextmanager
from types import SimpleNamespace

import fake_cache as cache
import fake_config as config
import torch
from torch import nn

from dsa_profiler.workloads import rope


def bmm_out(a, b, out):
    out.copy_(torch.bmm(a, b))


library = torch.library.Library("trtllm", "DEF")
library.define("bmm_out(Tensor a, Tensor b, Tensor(a!) out) -> ()")
library.define("cublas_mm(Tensor a, Tensor b, Tensor? bias, ScalarType? out_dtype) -> Tensor")
library.impl("bmm_out", bmm_out, "CPU")
library.impl("cublas_mm", lambda a, b, bias, out_dtype: a @ b, "CPU")
LAYER = "tensorrt_llm._torch.models.modeling_deepseekv3"
EXTRA = {}


def indexer_topk(core, logits, out):
    """Plain functions where the real package has ops, since the core is no tensor."""
    picks = core.topk(logits)
    out.fill_(-1)
    out[:, : picks.shape[-1]] = picks


torch.ops.trtllm.indexer_topk_prefill = indexer_topk
torch.ops.trtllm.indexer_topk_decode = indexer_topk


@contextmanager
def model_extra_attrs(attrs):
    EXTRA["now"] = attrs
    try:
        yield
    finally:
        del EXTRA["now"]


def get_model_extra_attrs():
    return EXTRA["now"]


STREAMS = [False]


@contextmanager
def with_multi_stream(enable):
    STREAMS.append(enable)
    try:
        yield
    finally:
        STREAMS.pop()


def initialize_dummy_weights(model, low=-1e-3, high=1e-3, seed=0):
    """Uniform and narrow, as the real one: the scores come out nearly alike."""
    for number, weight in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(seed + number)
        weight.data.uniform_(low, high, generator=generator)


def rotate_activation(x):
    """The package that rotates is not here; the real one then only logs."""
    return x


def fail_as_ordered(metadata):
    """FAKE_TRTLLM_FAULT is what every case of two requests fails with."""
    fault = os.environ.get("FAKE_TRTLLM_FAULT")
    if fault and metadata.batch == 2:
        raise torch.OutOfMemoryError(fault) if "memory" in fault else RuntimeError(fault)


class Linear(nn.Module):
    def __init__(self, inside, outside, dtype=torch.bfloat16):
        super().__init__()
        self.size, self.dtype = (outside, inside), dtype

    def create_weights(self):
        weight = torch.full(self.size, torch.nan, dtype=self.dtype)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((size,), torch.nan, dtype=torch.bfloat16))

    def forward(self, x):
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    def __init__(self, table, is_neox):
        super().__init__()
        self.table, self.is_neox = table, is_neox

    def forward(self, position_ids, targets):
        cos, sin = (t[position_ids][:, None] for t in self.table)
        turn = rope.rotate_halves if self.is_neox else rope.rotate_pairs
        return [turn(t.float(), cos, sin).to(t.dtype) for t in targets]


class Indexer(nn.Module):
    fused = True

    def __init__(self, shape, table):
        super().__init__()
        self.shape, self.n_heads, self.head_dim = shape, shape.index_n_heads, shape.index_head_dim
        self.rope_dim = shape.qk_rope_head_dim
        self.wq_b = Linear(shape.q_lora_rank, self.n_heads * self.head_dim)
        self.wk = Linear(shape.hidden_size, self.head_dim)
        self.weights_proj = Linear(shape.hidden_size, self.n_heads, torch.float32)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-6, dtype=torch.bfloat16)
        self.rotary_emb = RotaryEmbedding(table, is_neox=True)
        self.make_core = lambda metadata: cache.core_of(shape, metadata)

    def keys_and_weights(self, hidden):
        return self.wk(hidden), self.weights_proj(hidden.float())

    def _prep_q_or_k(self, pe, nope):
        whole = torch.cat((pe, nope), -1)
        return self.core.quantise(whole[None], whole[None, :, 0])[:2]

    def _weight_scale(self, weights, q_scale):
        return weights * q_scale * (self.n_heads * self.head_dim) ** -0.5

    def _update_k_cache(self, values, scale, metadata):
        self.core.store_keys(values, scale, metadata.past)

    def sparse_attn_indexer(self, metadata, hidden_states, q, weights):
        dsa = sys.modules[type(self).home]
        out = torch.empty(len(hidden_states), self.shape.index_topk, dtype=torch.int64)
        if metadata.past + metadata.new <= self.shape.index_topk:  # the short-sequence skip
            out[:] = torch.arange(out.shape[1])
            positions = torch.arange(metadata.new).repeat(metadata.batch) + metadata.past
            return out.masked_fill_(out > positions[:, None], -1)
        ops = torch.ops.trtllm
        if metadata.num_contexts:
            ops.indexer_topk_prefill(self.core, dsa.fp8_mqa_logits(self.core, q, weights), out)
        else:
            logits = dsa.fp8_paged_mqa_logits(self.core, q, weights)
            ops.indexer_topk_decode(self.core, logits, out)
        return out

    def forward(self, qr, hidden_states, metadata, position_ids):
        self.core = metadata.core
        b, n = metadata.batch, metadata.new
        k, weights = self.keys_and_weights(hidden_states)
        q = self.wq_b(qr).view(-1, self.n_heads, self.head_dim)
        k = self.k_norm(k)[:, None]
        (q_pe, k_pe) = self.rotary_emb(
            position_ids, [q[..., : self.rope_dim], k[..., : self.rope_dim]]
        )
        q8, q_scale = self._prep_q_or_k(q_pe, q[..., self.rope_dim :])
        k8, k_scale = self._prep_q_or_k(k_pe, k[..., self.rope_dim :])
        weights = self._weight_scale(weights, q_scale[0])
        self._update_k_cache(k8.view(b, n, -1), k_scale.view(b, n), metadata)
        shaped = q8.view(b, n, self.n_heads, -1), weights.view(b, n, -1)
        return self.sparse_attn_indexer(metadata, hidden_states, *shaped)


class RotatingIndexer(Indexer):
    """Before 1.3.0rc9: q and k are rotated where fast_hadamard_transform is installed."""

    def _prep_q_or_k(self, pe, nope):
        return super()._prep_q_or_k(rotate_activation(pe), nope)


class FusedIndexer(Indexer):
    """1.3.0rc9 and later: wk and weights_proj in one product that post_load_weights prepares."""

    def __init__(self, shape, table):
        super().__init__(shape, table)
        self._fused_wk_wp_weight = None

    def post_load_weights(self):
        assert self.wk.weight.isfinite().all(), "initialise before post_load_weights"
        parts = [self.wk.weight.data.float(), self.weights_proj.weight.data]
        self._fused_wk_wp_weight = torch.cat(parts, 0)

    def keys_and_weights(self, hidden):
        assert self._fused_wk_wp_weight is not None, (
            "post_load_weights() must be called before forward()"
        )
        both = torch.ops.trtllm.cublas_mm(
            hidden.float(), self._fused_wk_wp_weight.t(), None, out_dtype=None
        )
        k, weights = both.split([self.head_dim, self.n_heads], -1)
        return k.to(hidden.dtype), weights


class Mqa(nn.Module):
    """DSATrtllmAttention: owns the indexer and appends to the paged cache."""

    def __init__(self, indexer, shape, heads, table):
        super().__init__()
        self.indexer, self.shape, self.heads, self.table = indexer, shape, heads, table

    def mla_rope_append_paged_kv_assign_q(self, q, latent_cache, metadata, is_generation=False):
        s, b, n = self.shape, metadata.batch, metadata.new
        cos, sin = (t[metadata.past : metadata.past + n] for t in self.table)
        latent, pe = latent_cache.view(b, n, -1).split([s.kv_lora_rank, s.qk_rope_head_dim], -1)
        turned = rope.rotate_pairs(pe.float(), cos, sin).to(pe.dtype)
        metadata.core.store_rows(latent, turned, metadata.past)
        heads = q.view(b, n, self.heads, -1)[..., s.qk_nope_head_dim :]
        heads.copy_(rope.rotate_pairs(heads.float(), cos[:, None], sin[:, None]).to(q.dtype))


def flash_mla_sparse_fwd(q, core, rows, scale):
    return (core.attend(q, rows, scale),)


def transform_local_topk_and_prepare_pool_view(topk_indices, metadata, layer_idx, is_generation):
    return metadata.core.convert(topk_indices), metadata.core


class DeepseekV32Attention(nn.Module):
    indexer_class = Indexer
    attention_home = ""

    def __init__(self, model_config, layer_idx=None, aux_stream=None, reduce_output=True):
        super().__init__()
        assert model_config.skip_create_weights_in_init
        c = model_config.pretrained_config
        s = self.shape = SimpleNamespace(
            **{name: getattr(c, name) for name in (
                "hidden_size", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim",
                "qk_rope_head_dim", "index_n_heads", "index_head_dim", "index_topk",
            )}
        )  # fmt: skip
        assert c.num_key_value_heads == c.num_attention_heads
        assert c.torch_dtype is torch.bfloat16
        self.heads, self.model_config = c.num_attention_heads, model_config
        from dsa_profiler.model import Rope

        assert c.rope_scaling is None or c.rope_scaling["type"] == "yarn"
        table = rope.table(
            Rope(theta=c.rope_theta), s.qk_rope_head_dim, c.max_position_embeddings, torch.float32
        )
        self.kv_a_proj_with_mqa = Linear(
            s.hidden_size, s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim
        )
        self.q_a_layernorm = RMSNorm(s.q_lora_rank, c.rms_norm_eps)
        self.kv_a_layernorm = RMSNorm(s.kv_lora_rank, c.rms_norm_eps)
        head = s.qk_nope_head_dim + s.qk_rope_head_dim
        self.q_b_proj = Linear(s.q_lora_rank, self.heads * head)
        self.o_proj = Linear(self.heads * s.v_head_dim, s.hidden_size)
        self.indexer = self.indexer_class(s, table)
        self.mqa = Mqa(self.indexer, s, self.heads, table)
        self.softmax_scale = head**-0.5

    def create_weights(self):
        s = self.shape
        for name, size in (
            ("k_b_proj_trans", (self.heads, s.kv_lora_rank, s.qk_nope_head_dim)),
            ("v_b_proj", (self.heads, s.v_head_dim, s.kv_lora_rank)),
        ):
            weight = torch.full(size, torch.nan, dtype=torch.bfloat16)
            setattr(self, name, nn.Parameter(weight, requires_grad=False))

    def forward(
        self, position_ids, hidden_states, attn_metadata, all_reduce_params=None,
        latent_cache_gen=None,
    ):  # fmt: skip
        assert attn_metadata.prepared, "prepare() comes before forward"
        assert not attn_metadata.kv_cache_manager.closed
        assert position_ids.is_contiguous(), "position_ids must be contiguous"
        assert get_model_extra_attrs()["attention_metadata"]() is attn_metadata
        assert not self.training
        fail_as_ordered(attn_metadata)
        s, attention = self.shape, sys.modules[self.attention_home]
        q_a, latent, pe = self.kv_a_proj_with_mqa(hidden_states).split(
            [s.q_lora_rank, s.kv_lora_rank, s.qk_rope_head_dim], -1
        )
        qr, latent = self.q_a_layernorm(q_a), self.kv_a_layernorm(latent)
        picks = self.indexer(qr, hidden_states, attn_metadata, position_ids)
        q = self.q_b_proj(qr)
        generation = attn_metadata.num_contexts == 0
        self.mqa.mla_rope_append_paged_kv_assign_q(
            q, torch.cat((latent, pe), -1), attn_metadata, is_generation=generation
        )
        heads = q.view(-1, self.heads, s.qk_nope_head_dim + s.qk_rope_head_dim)
        nope = heads[..., : s.qk_nope_head_dim].transpose(0, 1)
        absorbed = nope.new_empty(self.heads, len(q), s.kv_lora_rank)
        torch.ops.trtllm.bmm_out(nope, self.k_b_proj_trans.transpose(1, 2), absorbed)
        whole = torch.cat((absorbed.transpose(0, 1), heads[..., s.qk_nope_head_dim :]), -1)
        rows, pool = attention.transform_local_topk_and_prepare_pool_view(
            picks, attn_metadata, 0, generation
        )
        shaped = whole.view(attn_metadata.batch, attn_metadata.new, self.heads, -1)
        attend = getattr(attention, "flash_mla_sparse_fwd", flash_mla_sparse_fwd)
        mixed = attend(shaped, pool, rows, self.softmax_scale)[0]
        out = hidden_states.new_empty(self.heads, len(q), s.v_head_dim)
        mixed = mixed.flatten(0, 1).to(out.dtype).transpose(0, 1)
        torch.ops.trtllm.bmm_out(mixed, self.v_b_proj.transpose(1, 2), out)
        return self.o_proj(out.transpose(0, 1).flatten(1))


class AttentionA(DeepseekV32Attention):
    """1.2: wk is fused into the down-projection by post_load_weights, and then is None."""

    def __init__(self, model_config, layer_idx=None, aux_stream=None, reduce_output=True):
        super().__init__(model_config, layer_idx, aux_stream, reduce_output)
        s = self.shape
        narrow = s.q_lora_rank + s.kv_lora_rank + s.qk_rope_head_dim
        self.kv_a_proj_with_mqa = Linear(s.hidden_size, narrow + s.index_head_dim)

    def post_load_weights(self):
        wk = self.indexer.wk.weight.data
        assert wk.isfinite().all(), "initialise before post_load_weights"
        self.kv_a_proj_with_mqa.weight.data[-len(wk) :].copy_(wk)
        self.indexer.wk = None
        whole = self.kv_a_proj_with_mqa.forward

        def split(x):
            out = whole(x)
            self.indexer.keys_and_weights = lambda hidden: (
                out[..., -len(wk) :],
                self.indexer.weights_proj(hidden.float()),
            )
            return out[..., : -len(wk)]

        self.kv_a_proj_with_mqa.forward = split


ERAS = {
    "A": SimpleNamespace(
        dsa="tensorrt_llm._torch.attention_backend.sparse.dsa",
        mla="tensorrt_llm._torch.modules.attention",
        backend="tensorrt_llm._torch.attention_backend",
        keyword="sparse_attn_config", sparse=config.SparseConfigA, model=config.ModelConfig,
        manager=cache.CacheManagerA, metadata=cache.MetadataA, indexer=RotatingIndexer,
        layer=AttentionA,
    ),
    "C": SimpleNamespace(
        dsa="tensorrt_llm._torch.attention_backend.sparse.dsa",
        mla="tensorrt_llm._torch.modules.mla",
        backend="tensorrt_llm._torch.attention_backend",
        keyword="sparse_attention_config", sparse=config.SparseConfigC,
        model=config.FrozenModelConfig, manager=cache.CacheManagerA, metadata=cache.MetadataA,
        indexer=FusedIndexer, layer=DeepseekV32Attention,
    ),
    "D": SimpleNamespace(
        dsa="tensorrt_llm._torch.attention_backend.sparse.dsa",
        mla="tensorrt_llm._torch.modules.mla",
        backend="tensorrt_llm._torch.attention_backend",
        keyword="sparse_attention_config", sparse=config.SparseConfigD,
        model=config.FrozenModelConfig, manager=cache.CacheManagerD, metadata=cache.MetadataD,
        indexer=FusedIndexer, layer=DeepseekV32Attention,
    ),
    "E": SimpleNamespace(
        dsa="tensorrt_llm._torch.attention.backends.sparse.dsa",
        mla="tensorrt_llm._torch.attention.mla",
        backend="tensorrt_llm._torch.attention.backends",
        keyword="sparse_params", sparse=config.SparseConfigD, model=config.FrozenModelConfig,
        manager=cache.CacheManagerD, metadata=cache.MetadataD, indexer=FusedIndexer,
        layer=DeepseekV32Attention,
    ),
}  # fmt: skip


def install(era):
    """Put the modules of one era where its imports look for them; era X keeps nothing of DSA."""
    if era == "X":
        return
    e = ERAS[era]

    def get_kv_cache_manager_cls_a(model_config):
        return e.manager

    def get_kv_cache_manager_cls_c(model_config, kv_cache_config):
        return e.manager

    manager_of = get_kv_cache_manager_cls_a if era == "A" else get_kv_cache_manager_cls_c
    layer = type("DeepseekV32Attention", (e.layer,), {
        "indexer_class": type("Indexer", (e.indexer,), {"home": e.dsa, "__module__": e.dsa}),
        "attention_home": e.mla, "__module__": LAYER,
    })  # fmt: skip
    _module(
        e.dsa, Indexer=layer.indexer_class, DSACacheManager=e.manager,
        DSAtrtllmAttentionMetadata=e.metadata, HAS_FAST_HADAMARD=False,
        fp8_mqa_logits=lambda core, q, weights: core.logits(q, weights),
        fp8_paged_mqa_logits=lambda core, q, weights: core.logits(q, weights),
    )  # fmt: skip
    _module(
        e.mla, MLA=type("MLA", (nn.Module,), {"__module__": e.mla}),
        flash_mla_sparse_fwd=flash_mla_sparse_fwd,
        transform_local_topk_and_prepare_pool_view=transform_local_topk_and_prepare_pool_view,
    )  # fmt: skip
    if os.environ.get("FAKE_TRTLLM_WITHOUT_A_HOOK"):
        del sys.modules[e.mla].flash_mla_sparse_fwd
    _module(f"{e.backend}.utils", get_attention_backend=cache.backend(e.metadata, e.keyword))
    _module(f"{e.backend}.interface", AttentionRuntimeFeatures=config.AttentionRuntimeFeatures)
    _module(LAYER, DeepseekV32Attention=layer)
    _module("tensorrt_llm._torch.model_config", ModelConfig=e.model)
    _module("tensorrt_llm._torch.metadata", KVCacheParams=config.KVCacheParams)
    _module(
        "tensorrt_llm._torch.pyexecutor.model_loader",
        initialize_dummy_weights=initialize_dummy_weights,
    )
    _module("tensorrt_llm._torch.pyexecutor._util", get_kv_cache_manager_cls=manager_of)
    _module(
        "tensorrt_llm._torch.utils", model_extra_attrs=model_extra_attrs,
        get_model_extra_attrs=get_model_extra_attrs,
    )  # fmt: skip
    _module("tensorrt_llm._torch.modules.multi_stream_utils", with_multi_stream=with_multi_stream)
    _module(
        "tensorrt_llm.llmapi.llm_args", DeepSeekSparseAttentionConfig=e.sparse,
        KvCacheConfig=config.KvCacheConfig,
    )  # fmt: skip
    _module("tensorrt_llm.bindings.internal.batch_manager", CacheType=config.CacheType)
    _module("tensorrt_llm.bindings", DataType=config.DataType)
    _module("tensorrt_llm.mapping", Mapping=config.Mapping)
    _module("tensorrt_llm.models.modeling_utils", QuantConfig=e.model.quant)
    _module("tensorrt_llm.quantization.mode", QuantAlgo=config.QuantAlgo)
    _module("tensorrt_llm._utils", get_sm_version=config.get_sm_version)


def _module(name, **contents):
    """A module and its parents, as entries of sys.modules and attributes of one another."""
    parent, _, child = name.rpartition(".")
    module = sys.modules.setdefault(name, types.ModuleType(name))
    module.__dict__.setdefault("__path__", [])
    module.__dict__.update(contents)
    if parent:
        setattr(_module(parent), child, module)
    return module
