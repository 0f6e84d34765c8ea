"""Example:  dsa-profiler model deepseek-v3.2

Print a model's architecture, DSA parameters and layer map. MODEL is a packaged preset
(deepseek-v3.2, glm-5) or the path of a Hugging Face config.json or its folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from dsa_profiler.errors import Exit
from dsa_profiler.model import layer_map, load_model

RULES = {"all": "all_dsa", "first_k_dense": "first_k_dense"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument(
        "--layer-rule",
        choices=RULES,
        default="all",
        help="all: every layer is DSA (what the models do). first_k_dense: count the first "
        "first_k_dense_replace layers as MLA, as some tables do",
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    shape = load_model(args.model)
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
