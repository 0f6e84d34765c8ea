import aiconfigurator.sdk.operations as ops
from aiconfigurator.sdk import common, models
from aiconfigurator.sdk.models import (
    DeepSeekModel,
    TrtllmWideEPDeepSeekModel,
    WideEPDeepSeekModel,
)

_apply_model_quant_defaults = models._apply_model_quant_defaults

# dsa_profiler: begin
import functools  # noqa: E402

from aiconfigurator.sdk.dsa import ARCHITECTURE as _DSA  # noqa: E402
from aiconfigurator.sdk.dsa import DeepSeekV32Config  # noqa: E402

_DSA_CONTAINS = {  # what the module does itself; left in, these would be counted twice
    "context_downscale_gemm",
    "context_q_b_proj_gemm",
    "context_kv_b_proj_gemm",
    "context_attention",
    "context_proj_gemm",
    "generation_downscale_gemm",
    "generation_q_b_proj_gemm",
    "generation_bmm_pre",
    "generation_attention",
    "generation_bmm_post",
    "generation_proj_gemm",
}


def _dsa_swap(model_ops, make, mla, layers):
    """
    The same ops with the attention module's replaced at the place of the attention.

    The names stay: the backend finds attention by them. With `mla` plain layers left, the replaced
    ops stay too, scaled down to those.
    """
    inner = [op for op in model_ops if op._name in _DSA_CONTAINS]
    attention = next(op for op in inner if op._name.endswith("_attention"))
    per_layer = attention._scale_factor / layers
    made = make(attention, (layers - mla) * per_layer, sum(op._weights for op in inner))
    swapped = []
    for op in model_ops:
        if op._name in _DSA_CONTAINS and mla:
            op._scale_factor = mla * per_layer
            swapped.append(op)
        elif op._name not in _DSA_CONTAINS:
            swapped.append(op)
        if op is attention:
            swapped.append(made)
    return swapped


def _use_dsa(model):
    """Turn a DeepSeek-V3 model into V3.2: one op is the whole attention module, of every layer."""
    config, chosen = DeepSeekV32Config.from_environment(), model.config
    layers, heads = model._num_layers, model._num_heads // chosen.tp_size
    mla, _ = config.layers(layers)
    gemm, kv = chosen.gemm_quant_mode, chosen.kvcache_quant_mode
    indexer = config.indexer_parameters() * gemm.value.memory

    def context(attention, scale, weights):
        kinds = (kv, chosen.fmha_quant_mode, gemm, _DSA)
        return ops.ContextDSA(attention._name, scale, heads, *kinds, weights=weights + indexer)

    def generation(attention, scale, weights):
        kinds = (kv, gemm, _DSA)
        return ops.GenerationDSA(attention._name, scale, heads, *kinds, weights=weights + indexer)

    model.context_ops = _dsa_swap(model.context_ops, context, mla, layers)
    model.generation_ops = _dsa_swap(model.generation_ops, generation, mla, layers)


def _dsa_init(init, swap):
    @functools.wraps(init)
    def wrapped(self, topk, num_experts, moe_inter_size, *args):
        if args[2] == _DSA and not swap:
            raise NotImplementedError(f"{type(self).__name__} has no DSA; leave enable_wideep off")
        init(self, topk, num_experts, moe_inter_size, *args)
        if self.architecture == _DSA:
            _use_dsa(self)

    return wrapped


def _dsa_quant_defaults(apply):
    @functools.wraps(apply)
    def wrapped(model_config, raw_config, architecture, *args, **kwargs):
        if architecture == _DSA:  # FP8 weights do not mean an FP8 cache: SM90 has none for DSA
            if model_config.kvcache_quant_mode is None:
                model_config.kvcache_quant_mode = common.KVCacheQuantMode.float16
            if model_config.fmha_quant_mode is None:
                model_config.fmha_quant_mode = common.FMHAQuantMode.float16
        return apply(model_config, raw_config, architecture, *args, **kwargs)

    return wrapped


_apply_model_quant_defaults = _dsa_quant_defaults(_apply_model_quant_defaults)
DeepSeekModel.__init__ = _dsa_init(DeepSeekModel.__init__, True)
TrtllmWideEPDeepSeekModel.__init__ = _dsa_init(TrtllmWideEPDeepSeekModel.__init__, False)
WideEPDeepSeekModel.__init__ = _dsa_init(WideEPDeepSeekModel.__init__, False)
# dsa_profiler: end
