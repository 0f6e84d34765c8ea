"""DeepSeek Sparse Attention tables for aiconfigurator 0.7: config, lookup and speed of light.

Installed as `aiconfigurator/sdk/dsa.py` by `sdk_patch/apply.py`; needs the standard library only.
One row is one whole attention module (projections, indexer, top-k, sparse attention, output), in
ms. `seq` is the number of keys that the last query sees: new plus cached tokens.
"""

import csv
import math
import os
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

ARCHITECTURE = "DeepseekV32ForCausalLM"
LAYER_RULE = "AICONFIGURATOR_DSA_LAYERS"
ANY = "*"
FILES = {
    "context": ("dsa_context_module_perf.txt", "dsa_context_perf.txt", "dsa_context_bf16_perf.txt"),
    "generation": (
        "dsa_generation_module_perf.txt",
        "dsa_generation_perf.txt",
        "dsa_generation_bf16_perf.txt",
    ),
}


@dataclass(frozen=True)
class DeepSeekV32Config:
    """Dimensions of the attention layer, and how many layers have it.

    All layers are DSA: `first_k_dense_replace` chooses the feed-forward part, not the attention.
    `layer_rule="first_k_dense"` counts the first k as plain MLA all the same, for comparison with
    tables that were made that way; $AICONFIGURATOR_DSA_LAYERS chooses it for a whole process.
    """

    hidden_size: int = 7168
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 64
    index_head_dim: int = 128
    index_topk: int = 2048
    first_k_dense_replace: int = 3
    layer_rule: str = "all_dsa"

    @classmethod
    def from_environment(cls):
        rule = os.environ.get(LAYER_RULE, "all_dsa")
        if rule not in ("all_dsa", "first_k_dense"):
            raise ValueError(f"{LAYER_RULE}={rule!r}: use all_dsa or first_k_dense")
        return cls(layer_rule=rule)

    def layers(self, num_layers):
        """(plain MLA layers, DSA layers) of a model with `num_layers`."""
        mla = self.first_k_dense_replace if self.layer_rule == "first_k_dense" else 0
        mla = min(mla, num_layers)
        return mla, num_layers - mla

    def indexer_parameters(self):
        """Weights of the indexer of one layer; it is not split over tensor parallelism."""
        queries = self.q_lora_rank * self.index_n_heads * self.index_head_dim
        return queries + self.hidden_size * (self.index_head_dim + self.index_n_heads)


class DsaTableError(ValueError):
    """A table that cannot be read: names the file and the line."""


class Missing(LookupError):
    """No row for this question, in any of the tables that there are."""


def half(name):
    """float16, as 0.7 calls half precision, whatever a table calls it."""
    return "float16" if name in ("bfloat16", "bf16", "fp16") else name


@lru_cache(maxsize=64)
def load(folder, phase):
    """{(architecture, fmha, kv, gemm): {heads: {prefix: {seq: {batch: (ms, W*ms)}}}}} of a folder.

    Reads upstream's columns or the seed's; the latter know no gemm_type, so any will do. A row that
    comes twice with two latencies is refused rather than silently won by the last.
    """
    for name in FILES[phase]:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return _read(path, phase)
    return None


def _read(path, phase):
    table = defaultdict(lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(dict))))
    with open(path, encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                key, cell, value = _cell(row, phase)
            except (KeyError, TypeError, ValueError) as error:
                raise DsaTableError(f"{path}:{line}: not a DSA row ({error})") from None
            heads, prefix, seq, batch = cell
            column = table[key][heads][prefix][seq]
            if column.setdefault(batch, value) != value:
                raise DsaTableError(f"{path}:{line}: this key comes twice with other latencies")
    return table


def _cell(row, phase):
    isl, step = int(row["isl"]), int(row["step"])
    prefix = step if phase == "context" else 0
    latency = float(row["latency"])
    if not (0 < latency < math.inf):
        raise ValueError(f"latency {row['latency']}")
    kind = half(row.get("mla_dtype") or row["dsa_dtype"])
    key = (
        row.get("architecture") or ARCHITECTURE,
        kind if phase == "context" else ANY,
        half(row.get("kv_cache_dtype") or kind),
        half(row.get("gemm_type") or ANY),
    )
    cell = (int(row["num_heads"]), prefix, isl + step, int(row["batch_size"]))
    return key, cell, (latency, latency * float(row.get("power") or 0.0))


def lookup(folder, phase, kinds, sizes, sol, knot):
    """(ms, W*ms) of (heads, prefix, seq, batch).

    A measured point is answered verbatim; between points linearly, one axis at a time; beyond them
    by the speed of light with the utilisation of the last point. On the seq axis nothing is
    interpolated across `knot`, where top-k begins to select: the line of the own side goes on.
    sol     (heads, prefix, seq, batch) -> ms
    Raises `Missing` when there is no table, or none for these kinds.
    """
    table = load(folder, phase)
    if table is None:
        raise Missing(f"no {FILES[phase][0]} in {folder}")
    architecture, fmha, kv, gemm = kinds
    fmha = fmha if phase == "context" else ANY
    for wanted in ((architecture, fmha, kv, gemm), (architecture, fmha, kv, ANY)):
        if wanted in table:
            return _at(table[wanted], (), tuple(sizes), sol, knot)
    have = ", ".join("/".join(key) for key in sorted(table))
    raise Missing(f"no {phase} DSA rows for {'/'.join(kinds)} in {folder}; there are {have}")


def _at(node, done, rest, sol, knot):
    if not rest:
        return node
    x, rest = rest[0], rest[1:]
    if x in node:
        return _at(node[x], (*done, x), rest, sol, knot)
    everything = points = sorted(node)
    if len(done) == 2:
        points = [p for p in everything if (p <= knot) == (x <= knot)] or everything
    below = [p for p in points if p < x]
    above = [p for p in points if p > x]

    def at(point):
        return _at(node[point], (*done, point), rest, sol, knot)

    if below and above:
        return _line(x, below[-1], above[0], at)
    edge = below[-1] if below else above[0]
    pair = (below[-2:] if below else above[:2]) if len(points) > 1 else []
    if pair and everything[0] < x < everything[-1]:  # cut off by the knot: its own side goes on
        one, two = at(pair[0]), at(pair[1])
        if two[0] >= one[0]:
            return _line(x, pair[0], pair[1], at)
        return at(edge)
    held = sol(*done, x, *rest) / sol(*done, edge, *rest)
    return tuple(v * held for v in at(edge))


def _line(x, low, high, at):
    share = (x - low) / (high - low)
    (one, energy), (two, more) = at(low), at(high)
    return one + share * (two - one), energy + share * (more - energy)


def speed_of_light(config, gpu, phase, batch, seq, prefix, heads, gemm_bytes, kv_bytes):
    """(ms, of arithmetic, of traffic): sum over stages of max(flops / peak, bytes / bandwidth).

    The roofline of dsa_profiler's `analysis/roofline.py`, executed work: heads padded to the tile
    of the sparse-attention kernel, and on SM90 all top-k key slots. `gpu` is the system sheet's.
    """
    rows = 1 if phase == "generation" else seq - prefix
    before = seq - rows
    stages = _stages(config, gpu, phase, batch, rows, before, heads, gemm_bytes, kv_bytes)
    time = sum(max(math_ms, traffic_ms) for math_ms, traffic_ms in stages)
    return time, sum(m for m, _ in stages), sum(t for _, t in stages)


def _stages(c, gpu, phase, batch, rows, before, heads, gemm_bytes, kv_bytes):
    half_rate, fp8_rate = gpu["float16_tc_flops"], gpu["fp8_tc_flops"]
    sm90 = gpu.get("sm_version", 90) < 100
    tokens = batch * rows
    pairs = batch * (rows * before + rows * (rows + 1) / 2)
    latent = c.kv_lora_rank + c.qk_rope_head_dim

    def ms(flops, rate, traffic):
        return 1e3 * flops / rate, 1e3 * traffic / gpu["mem_bw"]

    out = []
    for parameters, elements, batched in _projections(c, heads):
        width = 2.0 if batched else gemm_bytes
        rate = half_rate if width >= 2 else fp8_rate
        traffic = parameters * width + 2.0 * elements * tokens
        out.append(ms(2.0 * parameters * tokens, rate, traffic))
    index = c.index_n_heads * (c.index_head_dim + 4) * tokens
    keys = batch * (before + rows)
    traffic = index + keys * (c.index_head_dim + 4) + 4.0 * pairs
    out.append(ms(2.0 * c.index_n_heads * c.index_head_dim * pairs, fp8_rate, traffic))
    out.append(ms(0.0, fp8_rate, 4.0 * (pairs + tokens * c.index_topk)))
    short = min(max(c.index_topk - before, 0), rows)
    selected = batch * (short * before + short * (short + 1) / 2 + (rows - short) * c.index_topk)
    slots = tokens * c.index_topk if sm90 else selected
    tile = 64
    padded = -(-heads // tile) * tile
    row = (c.kv_lora_rank + 16 + 2 * c.qk_rope_head_dim) if kv_bytes == 1 else 2 * latent
    read = row * (keys if phase == "context" else selected)
    traffic = tokens * (2.0 * heads * (latent + c.kv_lora_rank) + 4.0 * c.index_topk) + read
    rate = fp8_rate if kv_bytes == 1 and not sm90 else half_rate
    out.append(ms(2.0 * (latent + c.kv_lora_rank) * padded * slots, rate, traffic))
    return out


def _projections(c, heads):
    """(parameters, activation elements a token, kept in half precision) of the seven products."""
    latent = c.kv_lora_rank + c.qk_rope_head_dim
    query = heads * (c.qk_nope_head_dim + c.qk_rope_head_dim)
    value, index = heads * c.v_head_dim, c.index_n_heads * c.index_head_dim
    narrow = c.index_head_dim + c.index_n_heads
    return (
        (c.hidden_size * (c.q_lora_rank + latent), c.hidden_size + c.q_lora_rank + latent, False),
        (c.q_lora_rank * query, query, False),
        (c.q_lora_rank * index, index, False),
        (c.hidden_size * narrow, narrow, False),
        (heads * c.qk_nope_head_dim * c.kv_lora_rank, 0, True),
        (value * c.kv_lora_rank, 0, True),
        (value * c.hidden_size, value + c.hidden_size, False),
    )
