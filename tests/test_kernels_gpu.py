"""The real kernels against plain PyTorch at real sizes. Needs a Hopper GPU and the package.

Inputs are drawn anew in every run; the seed stands in the message of a failure.
"""

from __future__ import annotations

import gzip
import json
import secrets
from pathlib import Path

import pytest
import torch
from kernels_judge import assert_small, errors
from reference_oracle import F64, SMALL, core_of, distance, layer_of, tokens

from dsa_profiler import marks
from dsa_profiler.errors import EnvironmentFault
from dsa_profiler.model import Case, load_model
from dsa_profiler.workloads import measure, worker
from dsa_profiler.workloads.instrument import unmarked
from dsa_profiler.workloads.kernels import HopperKernels, ready
from dsa_profiler.workloads.kernels_check import settled
from dsa_profiler.workloads.kernels_source import Kernels
from dsa_profiler.workloads.order import read_order
from dsa_profiler.workloads.reference import Layer

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
V32 = load_model("deepseek-v3.2")
CASES = [
    Case("context", 1, 1),
    Case("context", 1, 4096),
    Case("context", 3, 700, 64),
    Case("context", 2, 1024, 16, prefix=3000),
    Case("context", 1, 1024, 128, "fp8", prefix=2000),
    Case("generation", 1, 1),
    Case("generation", 8, 16383),
    Case("generation", 5, 2047, 16),
    Case("generation", 5, 2048, 64),
    Case("generation", 3, 4095, 8, "fp8"),
    Case("generation", 64, 2100, 128, "fp8"),
]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    try:
        return settled(ready(CUDA, {}), CUDA)
    except EnvironmentFault as fault:
        pytest.skip(fault.what)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.slug)
def test_kernels_agree_with_plain_pytorch(kernels: Kernels, case: Case) -> None:
    seed = secrets.randbelow(1 << 31)
    assert_small(errors(kernels, V32, case, CUDA, seed), case, f"seed {seed}")


def test_glm_5_has_half_the_index_heads(kernels: Kernels) -> None:
    case = Case("generation", 4, 5000, 64)
    assert_small(errors(kernels, load_model("glm-5"), case, CUDA, 1), case)


def test_every_helper_of_the_package_is_used(kernels: Kernels) -> None:
    """A stand-in would be a measurement of PyTorch; the environment names the reason."""
    assert {v for k, v in kernels.environment.items() if k.startswith("op_")} == {"package"}


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_captured_step_computes_what_the_eager_one_does(kernels: Kernels, dtype: str) -> None:
    with torch.inference_mode():
        made = HopperKernels(kernels, V32, CUDA, 0, {})
        step = made.prepare(Case("generation", 4, 4095, 64, dtype))
        for _ in range(3):
            want = step(unmarked).clone()
        replay = measure.captured(step)
        out = replay()
        out.fill_(torch.nan)
        assert distance(replay().cpu(), want.cpu()) < 1e-3


def test_the_reference_is_the_same_on_the_gpu() -> None:
    layer = layer_of()
    twin = Layer(SMALL, layer.heads, F64, CUDA, seed=0)
    moved = {name: getattr(layer.weights, name).to(CUDA) for name in layer.weights.__slots__}
    twin.weights = type(layer.weights)(**moved)
    x = tokens(layer, 2, 20)
    want = layer.forward(x, core_of(layer, 2, 0, 20), unmarked)
    core = core_of(layer, 2, 0, 20)
    core.rows, core.keys, core.key_scale = (
        t.to(CUDA) for t in (core.rows, core.keys, core.key_scale)
    )
    assert distance(twin.forward(x.to(CUDA), core, unmarked).cpu(), want) < 1e-10


def test_a_sweep_shows_the_three_kernels(kernels: Kernels, tmp_path: Path) -> None:
    case = Case("generation", 4, 4095, 16)
    chunk = {
        "workload": "kernels",
        "model": V32.as_json(),
        "cases": [case.as_json()],
        "tracer": "torch",
        "iterations": 3,
    }
    (tmp_path / "chunk.json").write_text(json.dumps(chunk))
    worker.run(read_order(tmp_path / "chunk.json"))
    end = json.loads((tmp_path / "outcome.jsonl").read_text().splitlines()[-2])
    assert (end["status"], end["iterations"]) == ("done", 3)
    assert end["untraced_ns"] > 0
    with gzip.open(tmp_path / "trace.json.gz", "rt") as file:
        rows = json.load(file)["traceEvents"]
    names = " ".join(row["name"] for row in rows if row.get("cat") == "kernel")
    for base in ("sparse_attn_fwd_kernel", "sm90_fp8_paged_mqa_logits", "topKPerRowDecode"):
        assert names.count(base) >= 3, base
    texts = [row["name"] for row in rows if row.get("cat") == "user_annotation"]
    assert texts.count(marks.stage("sparse_attn")) == 2 + 3
