"""One DeepseekV32Attention of TensorRT-LLM, built as its own model loader builds it.

The order matters: the constructor leaves memory uninitialised and, from 1.3.0rc9 on, the forward
asserts weights that only `post_load_weights` makes. So: construct without weights, create them,
move, initialise, post-load, evaluate.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, Literal

import torch

from dsa_profiler.errors import UsageError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads.trtllm_probe import Capabilities

WEIGHT_STD = 0.02
GemmType = Literal["bfloat16", "fp8_block"]
GEMM_TYPES = ("bfloat16", "fp8_block")


def pretrained_config(found: Capabilities, shape: ModelShape, heads: int) -> Any:
    """The whole config that the layer reads: a field short, and the constructor fails."""
    rope = shape.rope
    scaling = {
        "type": "yarn",
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_max_position,
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "mscale": rope.mscale,
        "mscale_all_dim": rope.mscale_all_dim,
    }
    config = found.get("PretrainedConfig")()
    fields = {
        "model_type": "deepseek_v32",
        "architectures": ["DeepseekV32ForCausalLM"],
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": shape.q_lora_rank,
        "kv_lora_rank": shape.kv_lora_rank,
        "qk_nope_head_dim": shape.qk_nope_head_dim,
        "qk_rope_head_dim": shape.qk_rope_head_dim,
        "v_head_dim": shape.v_head_dim,
        "index_n_heads": shape.index_n_heads,
        "index_head_dim": shape.index_head_dim,
        "index_topk": shape.index_topk,
        "max_position_embeddings": shape.max_position_embeddings,
        "rms_norm_eps": shape.rms_norm_eps,
        "torch_dtype": torch.bfloat16,
        "rope_theta": rope.theta,
        "rope_scaling": scaling if rope.factor > 1 else None,
        "attention_bias": False,
        "vocab_size": 129280,
    }
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def model_config(
    found: Capabilities, shape: ModelShape, case: Case, gemm: str, max_tokens: int
) -> Any:
    """TensorRT-LLM's ModelConfig of one layer on one GPU, with its sparse attention config."""
    sparse = {
        "index_n_heads": shape.index_n_heads,
        "index_head_dim": shape.index_head_dim,
        "index_topk": shape.index_topk,
    }
    if found.takes("DeepSeekSparseAttentionConfig", "indexer_rope_interleave"):
        sparse["indexer_rope_interleave"] = shape.indexer_rope_interleave
    config = found.get("ModelConfig")(
        pretrained_config=pretrained_config(found, shape, case.num_heads),
        mapping=found.get("Mapping")(world_size=1, rank=0, tp_size=1, pp_size=1),
        sparse_attention_config=found.get("DeepSeekSparseAttentionConfig")(**sparse),
        attn_backend="TRTLLM",
        skip_create_weights_in_init=True,
        max_num_tokens=max_tokens,
    )
    _quantise(found, config, gemm, case.dtype == "fp8")
    return config


def _quantise(found: Capabilities, config: Any, gemm: str, fp8_cache: bool) -> None:
    """QuantConfig is a dataclass or a pydantic model, and ModelConfig may be frozen."""
    if gemm not in GEMM_TYPES:
        raise UsageError("gemm-type", f"unknown gemm type {gemm!r}", "one of bfloat16, fp8_block")
    algorithms = found.get("QuantAlgo")
    changes = {
        "quant_algo": algorithms.FP8_BLOCK_SCALES if gemm == "fp8_block" else None,
        "kv_cache_quant_algo": algorithms.FP8 if fp8_cache else None,
        "exclude_modules": None,
    }
    if gemm == "fp8_block":
        changes["group_size"] = 128
    old = config.quant_config
    new = (
        dataclasses.replace(old, **changes)
        if dataclasses.is_dataclass(old) and not isinstance(old, type)
        else old.model_copy(update=changes)
    )
    try:
        config.quant_config = new
    except AttributeError:
        object.__setattr__(config, "quant_config", new)


def hadamard(found: Capabilities) -> str:
    """Whether the indexer rotates what it quantises: `none` in releases that never do, `left out`
    where the package for it is missing, which TensorRT-LLM only logs.
    """
    members = (part for _, part in inspect.getmembers(found.get("Indexer"), callable))
    codes = [code for m in members if (code := getattr(inspect.unwrap(m), "__code__", None))]
    if not any("rotate_activation" in code.co_names for code in codes):
        return "none"
    return "rotated" if getattr(found.module("Indexer"), "HAS_FAST_HADAMARD", True) else "left out"


def attention(found: Capabilities, config: Any, device: torch.device, seed: int, init: str) -> Any:
    """The layer, ready to run. `init` is `normal` or `dummy` (TensorRT-LLM's own)."""
    aux = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    layer = found.get("DeepseekV32Attention")(config, layer_idx=0, aux_stream=aux)
    for module in layer.modules():
        create = getattr(module, "create_weights", None)
        if callable(create):
            create()
    layer.to(device)
    _initialise(layer, seed, init)
    for module in layer.modules():
        load = getattr(module, "post_load_weights", None)
        if callable(load) and not getattr(module, "_weights_removed", False):
            load()
    layer.eval()
    layer.requires_grad_(False)
    return layer


def _initialise(layer: Any, seed: int, init: str) -> None:
    if init == "dummy":
        from importlib import import_module

        import_module("tensorrt_llm._torch.pyexecutor.model_loader").initialize_dummy_weights(layer)
    elif init == "normal":
        normal_weights(layer, seed)
    else:
        raise UsageError("weight-init", f"unknown initialisation {init!r}", "one of normal, dummy")


def normal_weights(layer: Any, seed: int) -> None:
    """N(0, 0.02), norms at one, biases at zero, block scales such that FP8 products are N(0, 0.02).

    Near-constant weights make all index scores alike, and top-k is slow on those just above 2,048
    keys: the tables would show a hump that a trained model may not have.
    """
    with torch.no_grad():
        for number, (name, weight) in enumerate(_weights(layer)):
            generator = torch.Generator(weight.device).manual_seed(seed * 1009 + number)
            if name.endswith("bias"):
                weight.zero_()
            elif "scale" in name:
                weight.fill_(WEIGHT_STD)
            elif "norm" in name:
                weight.fill_(1.0)
            else:
                std = 1.0 if weight.dtype.itemsize == 1 else WEIGHT_STD
                values = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
                weight.copy_(values.normal_(0, std, generator=generator))


def _weights(layer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Floating-point parameters by name, in the layer's order; tables of angles are no weights."""
    for name, parameter in layer.named_parameters():
        if parameter.dtype.is_floating_point and "cos_sin" not in name:
            yield name, parameter.data
