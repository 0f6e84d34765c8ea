"""A stand-in for a server, to be recorded and aligned with the standalone layer: no real server.

    python benchmarks/server_stand_in.py --workload kernels --tracer torch -o standin.json.gz

Decode steps of 61 stacked DSA layers with MoE-sized products between them, each layer with weights
and caches of its own, as one CUDA graph that is captured before the window opens, as servers do.
Each step lies in a range as TensorRT-LLM writes it. On a CPU the steps run eagerly.

What it has in common with a server: the order of kernels, cold caches between layers, graph replay,
no marks inside. What it has not: routing, communication, a scheduler, requests of mixed length.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import torch
from torch.nn import functional

from dsa_profiler.errors import DsaError
from dsa_profiler.model import Case, load_model
from dsa_profiler.workloads import measure
from dsa_profiler.workloads.instrument import marker, unmarked
from dsa_profiler.workloads.worker import WORKLOADS

EXPERTS = 9
"""Experts whose weights a token's step reads: eight routed and one shared."""
EXPERT_SIZE = 2048
WEIGHT_SETS = 3
"""Expert weights in rotation: together far larger than a GPU's cache."""


def stacked(workload, case: Case, layers: int) -> Callable[[], torch.Tensor]:
    """One decode step of the whole stack."""
    first = workload.layer_of(case.num_heads)
    stack = [first, *(twin(first) for _ in range(layers - 1))]
    cores, inputs = zip(*(workload.core_and_input(case, layer) for layer in stack), strict=True)
    experts = [expert_weights(first) for _ in range(min(WEIGHT_SETS, layers))]

    def step() -> torch.Tensor:
        x = inputs[0]
        for number, (layer, core) in enumerate(zip(stack, cores, strict=True)):
            x = normal(x + layer.forward(x, core, unmarked))
            up, down = experts[number % len(experts)]
            gate, value = functional.linear(x, up).chunk(2, -1)
            x = normal(x + functional.linear(functional.silu(gate) * value, down))
        return x

    return step


def twin(layer):
    """The same layer on weights at other addresses: nothing stays in the cache between layers."""
    other = copy.copy(layer)
    clones = {f.name: getattr(layer.weights, f.name).clone() for f in fields(layer.weights)}
    other.weights = replace(layer.weights, **clones)
    return other


def expert_weights(layer) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, size = layer.shape.hidden_size, EXPERTS * EXPERT_SIZE
    up = torch.empty(2 * size, hidden, dtype=layer.dtype, device=layer.device)
    down = torch.empty(hidden, size, dtype=layer.dtype, device=layer.device)
    return up.normal_(0, 0.02), down.normal_(0, 0.02)


def normal(x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, x.shape[-1:])


def record(args: argparse.Namespace) -> dict[str, object]:
    """Build, warm up, capture, and only then open the window."""
    device = measure.device_of(args.device)
    model = load_model(args.model)
    case = Case("generation", args.batch, args.kv - 1, args.heads, args.dtype)
    workload = import_module(WORKLOADS[args.workload]).build(model, device, args.seed, {})
    mark = marker(args.tracer, device.type)
    step = stacked(workload, case, args.layers)
    for _ in range(3):
        step()
    measure.synchronise(device)
    if device.type == "cuda":
        eager = step
        step = measure.captured(lambda _: eager())
    times = [measure.elapsed_ns(step, device)[0] for _ in range(args.steps)]
    with measure.window(args.tracer, device, args.output):
        for number in range(args.steps):
            with mark(f"[Executor] _forward_step {number}: 0 ctx reqs, {case.batch_size} gen reqs"):
                output = step()
                measure.synchronise(device)
    if not bool(output.isfinite().all()):
        raise SystemExit("the stack's output holds NaN or infinity")
    return {
        "what": "a stand-in for a server; no server was recorded",
        "case": case.slug,
        "layers": args.layers,
        "steps": args.steps,
        "graph": device.type == "cuda",
        "untraced_step_ns": sorted(times)[len(times) // 2],
        "environment": {**measure.describe(device), **workload.environment},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", choices=("reference", "kernels"), default="kernels")
    parser.add_argument("--model", default="deepseek-v3.2")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--kv", type=int, default=4096, help="keys a sequence, the new one too")
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tracer", choices=("torch", "nsys", "none"), default="torch")
    parser.add_argument("-o", "--output", type=Path, default=Path("standin.json.gz"))
    args = parser.parse_args()
    try:
        with torch.inference_mode():
            about = record(args)
    except DsaError as error:
        print(f"error: {error.what}\n cure: {error.cure}", file=sys.stderr)
        return int(error.exit_code)
    print(json.dumps(about, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
