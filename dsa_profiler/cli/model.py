"""Example:  dsa-profiler model deepseek-v3.2 --roofline --system h200_sxm --seq-lens 4096,32768

Print a model's architecture, DSA parameters and layer map. MODEL is a packaged preset
(deepseek-v3.2, glm-5) or the path of a Hugging Face config.json or its folder. With --roofline,
print the time that no kernel can beat, stage by stage, for any shape; no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from dsa_profiler.errors import Exit, UsageError
from dsa_profiler.model import Case, ModelShape, Phase, layer_map, load_model
from dsa_profiler.results import Floor

RULES = {"all": "all_dsa", "first_k_dense": "first_k_dense"}
MODES: dict[str, tuple[Phase, ...]] = {
    "context": ("context",),
    "generation": ("generation",),
    "both": ("context", "generation"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a preset, a config.json or its folder")
    parser.add_argument(
        "--layer-rule",
        choices=RULES,
        default="all",
        help="all: every layer is DSA (what the models do). first_k_dense: count the first "
        "first_k_dense_replace layers as MLA, as some tables do",
    )
    parser.add_argument("--roofline", action="store_true", help="floors of the shapes given below")
    group = parser.add_argument_group("shapes of --roofline")
    group.add_argument("--system", default="h200_sxm", help="GPU, default h200_sxm")
    group.add_argument("--datasheet", action="store_true", help="the vendor's rates, not ours")
    group.add_argument("--mode", choices=MODES, default="both")
    group.add_argument("--batch-sizes", type=numbers, default=(1,), metavar="N,N")
    group.add_argument("--seq-lens", type=numbers, default=(1024, 4096, 16384), metavar="N,N")
    group.add_argument("--num-heads", type=numbers, metavar="N,N", help="default: the model's")
    group.add_argument("--prefixes", type=numbers_or_zero, default=(0,), metavar="N,N")
    group.add_argument("--gemm", choices=("bfloat16", "fp8", "nvfp4"), default="bfloat16")
    group.add_argument("--kv-dtype", choices=("bfloat16", "fp8"), default="bfloat16")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    shape = load_model(args.model)
    if args.roofline:
        return _roofline(shape, args)
    layers = layer_map(shape, RULES[args.layer_rule])  # type: ignore[arg-type]
    if args.json:
        print(json.dumps({"schema": 1, **shape.as_json(), "layers": asdict(layers)}, indent=2))
        return int(Exit.OK)
    print(f"Model: {shape.name}")
    print(f"Architecture: {shape.architecture}")
    print(f"Family: {shape.family}")
    print(
        f"DSA: index_n_heads={shape.index_n_heads} index_head_dim={shape.index_head_dim} "
        f"index_topk={shape.index_topk}"
    )
    print(
        f"Attention: hidden={shape.hidden_size} heads={shape.num_attention_heads} "
        f"q_lora={shape.q_lora_rank} kv_lora={shape.kv_lora_rank} nope={shape.qk_nope_head_dim} "
        f"rope={shape.qk_rope_head_dim} v={shape.v_head_dim}"
    )
    print(layers)
    return int(Exit.OK)


def numbers(text: str, least: int = 1) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < least or max(values) > 1 << 31:
        raise UsageError(
            "list-malformed",
            f"not a list of whole numbers from {least} up: {text!r}",
            "write them with commas, like 1,16,64",
        )
    return values


def numbers_or_zero(text: str) -> tuple[int, ...]:
    return numbers(text, 0)


def _roofline(shape: ModelShape, args: argparse.Namespace) -> int:
    from dsa_profiler.analysis import roofline, systems

    system = systems.load(args.system, args.datasheet)
    floors = [roofline.floor(shape, case, system, args.gemm) for case in _cases(shape, args)]
    if args.json:
        cases = [_row(f) for f in floors]
        document = {"schema": 1, "model": shape.name, "system": asdict(system), "cases": cases}
        print(json.dumps(document, indent=2))
        return int(Exit.OK)
    print(
        f"{system.name}: bfloat16 {system.bfloat16 / 1e12:g} TFLOP/s, fp8 {system.fp8 / 1e12:g}, "
        f"{system.bandwidth / 1e12:g} TB/s, {system.sm_count} SMs\n({system.source})\n"
    )
    for found in floors:
        print(_table(found))
    print(
        "floor: sum over stages of max(FLOPs / peak, bytes / bandwidth), with the padding that the "
        "kernels execute;\nuseful: without it. Norms, RoPE, quantisation and cache writes are free "
        "in it. Launches are no part of it."
    )
    return int(Exit.OK)


def _cases(shape: ModelShape, args: argparse.Namespace) -> list[Case]:
    return [
        Case(mode, batch, seq, heads, args.kv_dtype, prefix)
        for mode in MODES[args.mode]
        for heads in args.num_heads or (shape.num_attention_heads,)
        for prefix in (args.prefixes if mode == "context" else (0,))
        for seq in args.seq_lens
        for batch in args.batch_sizes
    ]


def _row(found: Floor) -> dict[str, Any]:
    return {
        "id": found.case.slug,
        "floor_ms": found.floor_ns / 1e6,
        "useful_ms": found.useful_ns / 1e6,
        "launch_ms": found.launch_ns / 1e6,
        **found.as_json(),
    }


def _table(found: Floor) -> str:
    lines = [
        f"{found.case.slug}: floor {found.floor_ns / 1e6:.4g} ms, useful "
        f"{found.useful_ns / 1e6:.4g} ms; {found.launches} launches "
        f"{found.launch_ns / 1e6:.2g} ms without a CUDA graph",
        f"  {'stage':<15}{'floor_ms':>10}{'useful_ms':>11}{'GFLOP':>12}{'executed':>12}"
        f"{'MB':>11}  bound",
    ]
    lines += [
        f"  {s.stage:<15}{s.floor_ns / 1e6:>10.4f}{s.useful_ns / 1e6:>11.4f}"
        f"{s.flops_useful / 1e9:>12,.2f}{s.flops_executed / 1e9:>12,.2f}{s.bytes / 1e6:>11,.1f}"
        f"  {s.bound}"
        for s in found.stages
    ]
    return "\n".join(lines) + "\n"
