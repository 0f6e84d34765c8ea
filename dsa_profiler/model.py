"""The model's shape, read from a Hugging Face config, and the grid point called a case."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from dsa_profiler.errors import InputError, UsageError

Phase = Literal["context", "generation"]
Dtype = Literal["bfloat16", "fp8", "float32"]
LayerRule = Literal["all_dsa", "first_k_dense"]
PRESETS = ("deepseek-v3.2", "glm-5")
ALIASES = {"deepseek-ai/deepseek-v3.2": "deepseek-v3.2", "zai-org/glm-5": "glm-5"}
FAMILIES = {"DeepseekV32ForCausalLM": "DEEPSEEKV32", "GlmMoeDsaForCausalLM": "GLM5"}

_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "index_n_heads",
    "index_head_dim",
    "index_topk",
    "num_hidden_layers",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: base, and YaRN's scaling where `factor` is above 1."""

    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Every dimension of a DSA attention layer. Sizes are in elements, counts in pieces.

    `num_attention_heads` is the whole model's; a case carries its local head count.
    """

    name: str
    architecture: str
    hidden_size: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    num_hidden_layers: int
    max_position_embeddings: int
    first_k_dense_replace: int = 0
    rms_norm_eps: float = 1e-6
    torch_dtype: str = "bfloat16"
    indexer_rope_interleave: bool = False
    rope: Rope = Rope()

    @property
    def family(self) -> str:
        return FAMILIES.get(self.architecture, "unknown")

    def softmax_scale(self, max_seq_len: int) -> float:
        """qk_head_dim^-0.5, times YaRN's m^2 once `max_seq_len` passes the original length.

        m = 0.1 * mscale * ln(factor) + 1, as in DeepSeek's published inference code.
        """
        from math import log

        scale = float((self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5)
        if self.rope.factor > 1 and max_seq_len > self.rope.original_max_position:
            m = 0.1 * self.rope.mscale * log(self.rope.factor) + 1.0
            scale *= m * m
        return scale

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        out["rope"] = {f.name: getattr(self.rope, f.name) for f in fields(self.rope)}
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelShape:
        return cls(**{**data, "rope": Rope(**data["rope"])})


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One grid point: what one iteration of the layer is asked to do.

    phase       context: `seq_len` new tokens a sequence after `prefix` cached ones.
                generation: one new token a sequence after `seq_len` cached ones.
    num_heads   local attention heads, i.e. the model's heads / tensor parallelism.
    dtype       of the KV cache.
    """

    phase: Phase
    batch_size: int
    seq_len: int
    num_heads: int = 128
    dtype: Dtype = "bfloat16"
    prefix: int = 0

    _SLUG = re.compile(
        r"(context|generation)-b([1-9]\d*)-s([1-9]\d*)(?:-p([1-9]\d*))?-h([1-9]\d*)-(\w+)", re.ASCII
    )

    def __post_init__(self) -> None:
        if self.phase not in get_args(Phase):
            raise UsageError("mode-unknown", f"unknown mode {self.phase!r}", _one_of(Phase))
        if self.dtype not in get_args(Dtype):
            raise UsageError("dtype-unknown", f"unknown dtype {self.dtype!r}", _one_of(Dtype))
        if min(self.batch_size, self.seq_len, self.num_heads) < 1 or self.prefix < 0:
            raise UsageError(
                "size-below-one",
                f"a case needs sizes of at least 1, got batch {self.batch_size}, "
                f"sequence {self.seq_len}, heads {self.num_heads}, prefix {self.prefix}",
                "give whole numbers from 1 up",
            )

    @property
    def slug(self) -> str:
        """The case's one name everywhere: mark, folder, CSV key, HTML anchor, resume key."""
        prefix = f"-p{self.prefix}" if self.prefix else ""
        return (
            f"{self.phase}-b{self.batch_size}-s{self.seq_len}{prefix}"
            f"-h{self.num_heads}-{self.dtype}"
        )

    @property
    def kv_len(self) -> int:
        """Keys that the last query of each sequence can see."""
        return self.seq_len + (1 if self.phase == "generation" else self.prefix)

    @property
    def tokens(self) -> int:
        """New tokens in one iteration."""
        return self.batch_size * (1 if self.phase == "generation" else self.seq_len)

    @classmethod
    def from_slug(cls, slug: str) -> Case:
        match = cls._SLUG.fullmatch(slug)
        if match is None:
            raise UsageError(
                "slug-malformed",
                f"not a case: {slug!r}",
                "a case reads like generation-b64-s4095-h128-bfloat16",
            )
        phase, batch, seq, prefix, heads, dtype = match.groups()
        return cls(phase, int(batch), int(seq), int(heads), dtype, int(prefix or 0))  # type: ignore[arg-type]

    def as_json(self) -> dict[str, Any]:
        return {
            "phase": self.phase,
            "batch_size": self.batch_size,
            "seq_len": self.seq_len,
            "num_heads": self.num_heads,
            "dtype": self.dtype,
            "prefix": self.prefix,
        }


@dataclass(frozen=True, slots=True)
class LayerMap:
    """How many layers run plain MLA and how many DSA."""

    mla: int
    dsa: int

    def __str__(self) -> str:
        return f"Layers: {self.mla + self.dsa} (MLA: {self.mla}, DSA: {self.dsa})"


def layer_map(shape: ModelShape, rule: LayerRule = "all_dsa") -> LayerMap:
    """All layers are DSA: first_k_dense_replace chooses the FFN, not the attention.

    `first_k_dense` counts the first k layers as MLA all the same, for comparison with tables that
    were made that way.
    """
    mla = shape.first_k_dense_replace if rule == "first_k_dense" else 0
    return LayerMap(mla, shape.num_hidden_layers - mla)


def load_model(name: str) -> ModelShape:
    """A preset's name, or a Hugging Face `config.json` (the file or its folder)."""
    key = ALIASES.get(name.lower(), name.lower())
    if key in PRESETS:
        text = resources.files("dsa_profiler.presets").joinpath(f"{key}.json").read_text("utf-8")
        return replace(shape_of(json.loads(text), key), name=key)
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            "model-not-found",
            f"no such model: {name}",
            f"give one of {', '.join(PRESETS)}, or the path of a Hugging Face config.json",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            "model-unreadable", f"cannot read {path}: {error}", "give a readable JSON file"
        ) from None
    return shape_of(data, str(path))


def shape_of(data: Any, origin: str) -> ModelShape:
    """The shape in a Hugging Face config. A missing or absurd field is named."""
    if not isinstance(data, dict):
        raise InputError("model-unreadable", f"{origin} holds no JSON object", _CONFIG_CURE)
    sizes = {name: _size(data, name, origin) for name in _SIZES}
    architectures = data.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise InputError("model-field", f"{origin}: field architectures is missing", _CONFIG_CURE)
    if sizes["qk_rope_head_dim"] > sizes["index_head_dim"] or sizes["qk_rope_head_dim"] % 2:
        raise InputError(
            "model-field",
            f"{origin}: qk_rope_head_dim = {sizes['qk_rope_head_dim']} must be even and at most "
            f"index_head_dim = {sizes['index_head_dim']}",
            _CONFIG_CURE,
        )
    first_dense = _size(data, "first_k_dense_replace", origin, default=0, least=0)
    if first_dense > sizes["num_hidden_layers"]:
        raise InputError(
            "model-field",
            f"{origin}: first_k_dense_replace = {first_dense} exceeds "
            f"num_hidden_layers = {sizes['num_hidden_layers']}",
            _CONFIG_CURE,
        )
    return ModelShape(
        name=Path(origin).parent.name or origin,
        architecture=str(architectures[0]),
        first_k_dense_replace=first_dense,
        rms_norm_eps=_positive(data, "rms_norm_eps", origin, 1e-6),
        torch_dtype=str(data.get("torch_dtype") or data.get("dtype") or "bfloat16"),
        indexer_rope_interleave=bool(data.get("indexer_rope_interleave", False)),
        rope=_rope(data, origin),
        **sizes,
    )


_CONFIG_CURE = (
    "give the config.json of a DeepSeek-V3.2 or GLM-5 style model (index_* fields present)"
)


def _one_of(literal: Any) -> str:
    return "one of " + ", ".join(get_args(literal))


def _size(
    data: dict[str, Any], name: str, origin: str, default: int | None = None, least: int = 1
) -> int:
    value = data.get(name, default)
    if value is None:
        raise InputError("model-field", f"{origin}: field {name} is missing", _CONFIG_CURE)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
        raise InputError(
            "model-field",
            f"{origin}: {name} = {value!r} is not a whole number from {least} up",
            _CONFIG_CURE,
        )
    return value


def _positive(data: dict[str, Any], name: str, origin: str, default: float) -> float:
    value = data.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise InputError(
            "model-field", f"{origin}: {name} = {value!r} is not a positive number", _CONFIG_CURE
        )
    return float(value)


def _rope(data: dict[str, Any], origin: str) -> Rope:
    scaling = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        raise InputError("model-field", f"{origin}: rope_scaling is not an object", _CONFIG_CURE)
    theta = _positive(data if "rope_theta" in data else scaling, "rope_theta", origin, 10000.0)
    if (scaling.get("type") or scaling.get("rope_type")) != "yarn":
        return Rope(theta=theta)
    number = {
        name: _positive(scaling, name, origin, default)
        for name, default in (
            ("factor", 1.0), ("beta_fast", 32.0), ("beta_slow", 1.0), ("mscale", 1.0),
            ("mscale_all_dim", 1.0),
        )
    }  # fmt: skip
    original = _size(scaling, "original_max_position_embeddings", origin, default=4096)
    return Rope(theta=theta, original_max_position=original, **number)
