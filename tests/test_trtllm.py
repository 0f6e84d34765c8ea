"""The adapter on a strict stand-in for tensorrt_llm, era by era: no GPU, no real package.

The stand-in (tests/fake_trtllm) keeps the real layout and signatures: a wrong keyword, order
or shape fails; its arithmetic is the reference's. Each era runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsa_profiler.model import Case, ModelShape

FAKE = Path(__file__).parent / "fake_trtllm"
SHAPE = ModelShape(
    name="tiny", architecture="DeepseekV32ForCausalLM", hidden_size=96, num_attention_heads=8,
    q_lora_rank=48, kv_lora_rank=128, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32,
    index_n_heads=4, index_head_dim=32, index_topk=64, num_hidden_layers=1,
    max_position_embeddings=512,
)  # fmt: skip
STAGES = [
    "qkv_a_proj", "qkv_a_norm", "qkv_a_norm", "indexer_k_proj", "indexer_q_proj",
    "indexer_rope_norm", "indexer_rope_norm", "indexer_quant", "indexer_quant", "indexer_quant",
    "indexer_cache", "mqa_logits", "topk", "q_b_proj", "rope_append", "q_absorb", "index_convert",
    "sparse_attn", "v_up_proj", "o_proj",
]  # fmt: skip


def python(*arguments: str, era: str = "D", sm: int = 90) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(FAKE),
        "FAKE_TRTLLM_ERA": era,
        "FAKE_TRTLLM_SM": str(sm),
    }
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


def work(
    folder: Path, *cases: Case, era: str = "D", sm: int = 90, **options: object
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, object]]]:
    """One worker process; what it printed and the events it wrote."""
    order = {
        "workload": "trtllm", "model": SHAPE.as_json(), "cases": [c.as_json() for c in cases],
        "warmup": 1, "iterations": 2, "seed": 0, "device": "cpu", "tracer": "none",
        "outcome": "outcome.jsonl", "options": options,
    }  # fmt: skip
    (folder / "chunk.json").write_text(json.dumps(order))
    chunk = str(folder / "chunk.json")
    done = python("-m", "dsa_profiler.workloads.worker", chunk, era=era, sm=sm)
    path = folder / "outcome.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return done, [json.loads(line) for line in lines]


def ends(events: list[dict[str, object]]) -> dict[str, tuple[object, object]]:
    return {str(e["case"]): (e["status"], e["detail"]) for e in events if e["event"] == "end"}


CASES = (
    Case("context", 2, 100, 8),
    Case("context", 1, 50, 8, prefix=40),
    Case("generation", 3, 99, 8),
    Case("generation", 2, 20, 8),
    Case("generation", 2, 99, 16),
)


@pytest.mark.parametrize("era", ["A", "C", "D", "E"])
def test_every_era_builds_and_runs_the_layer(tmp_path: Path, era: str) -> None:
    done, events = work(tmp_path, *CASES, era=era)
    assert ends(events) == {c.slug: ("done", "") for c in CASES}, done.stderr
    ready = next(e["environment"] for e in events if e["event"] == "ready")
    assert isinstance(ready, dict)
    assert ready["framework"] == "TRTLLM"
    assert ready["weight_init"] == "normal(0, 0.02)"
    assert ready["tokens_per_block"] == 64


@pytest.mark.parametrize(
    ("case", "sm", "said"),
    [
        (Case("generation", 1, 99, 8, "fp8"), 90, "BF16 KV cache only"),
        (Case("generation", 1, 99, 4), 100, "at least 8 local heads"),
        (Case("generation", 1, 99, 8), 80, "needs SM 90"),
        (Case("generation", 1, 99, 8, "float32"), 90, "no float32"),
    ],
)
def test_what_the_gpu_cannot_run_is_named_and_the_rest_goes_on(
    tmp_path: Path, case: Case, sm: int, said: str
) -> None:
    good = Case("context", 1, 100, 8)
    _, events = work(tmp_path, case, good, sm=sm)
    status, detail = ends(events)[case.slug]
    assert status == "failed"
    assert said in str(detail)
    assert sm == 80 or ends(events)[good.slug][0] == "done"


def test_blackwell_takes_fp8_kv_and_pages_of_32(tmp_path: Path) -> None:
    case = Case("generation", 1, 99, 8, "fp8")
    done, events = work(tmp_path, case, sm=100)
    assert ends(events)[case.slug][0] == "done", done.stderr


def test_a_servers_max_seq_len_is_passed_on_and_must_hold_the_case(tmp_path: Path) -> None:
    short, long = Case("generation", 1, 99, 8), Case("generation", 1, 199, 8)
    _, events = work(tmp_path, short, long, max_seq_len=128)
    assert ends(events)[short.slug][0] == "done"
    assert "max_seq_len is 128" in str(ends(events)[long.slug][1])


@pytest.mark.parametrize(("option", "value"), [("gemm_type", "int3"), ("weight_init", "zeros")])
def test_an_unknown_option_is_named(tmp_path: Path, option: str, value: str) -> None:
    _, events = work(tmp_path, Case("context", 1, 100, 8), **{option: value})
    [(status, detail)] = ends(events).values()
    assert status == "failed"
    assert value in str(detail)


def test_an_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    done, events = work(tmp_path, Case("context", 1, 100, 8), era="X")
    assert done.returncode == 3
    assert not events
    assert "DSACacheManager in tensorrt_llm._torch.attention.backends.sparse.dsa or" in done.stderr
    assert "doctor --contract" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_dependency_is_named_and_is_no_unknown_layout(tmp_path: Path) -> None:
    package = tmp_path / "tensorrt_llm"
    module = package / "_torch" / "attention_backend" / "sparse"
    module.mkdir(parents=True)
    for folder in (package, package / "_torch", module.parent, module):
        (folder / "__init__.py").write_text("__version__ = '1.3.0rc21'\n")
    (module / "dsa.py").write_text("import deep_gemm_of_nobody\n")
    done = subprocess.run(
        [sys.executable, "-m", "dsa_profiler.workloads.trtllm_probe"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert "No module named 'deep_gemm_of_nobody'" in json.loads(done.stdout)["what"]


def test_no_package_is_an_environment_fault() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsa_profiler.workloads.trtllm_probe"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3
    assert json.loads(done.stdout)["what"] == "tensorrt_llm is not installed"


@pytest.mark.parametrize("era", ["A", "C", "D", "E"])
def test_the_contract_knows_each_era_and_the_drift_to_the_others(era: str) -> None:
    report = json.loads(python("-m", "dsa_profiler.workloads.trtllm_probe", era=era).stdout)
    assert report["drift"][era] == []
    others = {other: lines for other, lines in report["drift"].items() if other != era}
    assert all(others.values())


STRICT = """
import pytest, torch, tensorrt_llm
from types import SimpleNamespace as Bag
from tensorrt_llm._torch.attention_backend.sparse import dsa
from tensorrt_llm._torch.metadata import KVCacheParams
from tensorrt_llm._torch.attention_backend.interface import AttentionRuntimeFeatures
from tensorrt_llm.llmapi.llm_args import KvCacheConfig, DeepSeekSparseAttentionConfig

def metadata(seq_len=1, **changes):
    fields = dict(
        max_num_requests=1, max_num_tokens=8, kv_cache_manager=Bag(token_nums=[7 + seq_len]),
        mapping=None, seq_lens=torch.tensor([seq_len], dtype=torch.int32), num_contexts=0,
        kv_cache_params=KVCacheParams(True, [7]), request_ids=[0], prompt_lens=[7],
        runtime_features=AttentionRuntimeFeatures(), workspace=torch.empty(0))
    return dsa.DSAtrtllmAttentionMetadata(**{**fields, **changes})

with pytest.raises(AssertionError, match="max_input_uncached_seq_len"):
    metadata(seq_len=8).prepare()
with pytest.raises(TypeError):
    metadata(sparse_attention_config=None)
with pytest.raises(TypeError):
    DeepSeekSparseAttentionConfig(index_heads=64)
sizes = dict(num_layers=1, num_kv_heads=1, head_dim=576, tokens_per_block=64, max_seq_len=100,
             max_batch_size=1, mapping=None, dtype=None)
with pytest.raises(TypeError, match="sparse_attn_config"):
    dsa.DSACacheManager(KvCacheConfig(100), None, sparse_attn_config=None, **sizes)
print("strict")
"""


def test_the_stand_in_refuses_what_the_real_package_refuses() -> None:
    done = python("-c", STRICT)
    assert done.stdout == "strict\n", done.stderr


MARKED = """
import json, sys, torch
from contextlib import contextmanager
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import trtllm
from dsa_profiler.workloads.instrument import unmarked

seen = []
@contextmanager
def mark(stage):
    seen.append(stage)
    if stage == sys.argv[2]:
        raise RuntimeError("in the middle")
    yield

model = ModelShape.from_json(json.loads(sys.argv[1]))
workload = trtllm.build(model, torch.device("cpu"), 0, {})
step = workload.prepare(Case("context", 2, 100, 8))
def state():
    modules = dict(step.layer.named_modules())
    plain = {name: sorted(vars(m)) for name, m in modules.items()}
    places = {k: id(v) for part in (step.start.dsa, step.start.attention, step.start.ops)
              for k, v in vars(part).items()}
    return plain, places
with torch.inference_mode():
    first = step(unmarked)
    before = state()
    try:
        second = step(mark)
    except RuntimeError:
        second = first
    assert state() == before, "the marks left something behind"
    assert torch.equal(first, second) and torch.equal(first, step(unmarked))
print(json.dumps(seen))
"""


def test_every_stage_is_marked_in_order_and_the_marks_come_off() -> None:
    done = python("-c", MARKED, json.dumps(SHAPE.as_json()), "none")
    assert json.loads(done.stdout) == STAGES, done.stderr
    assert "no place for the marks" not in done.stderr


def test_the_marks_come_off_after_an_exception_too() -> None:
    done = python("-c", MARKED, json.dumps(SHAPE.as_json()), "sparse_attn")
    assert json.loads(done.stdout)[-1] == "sparse_attn", done.stderr


CONFIG = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "num_attention_heads": 8,
    **{name: value for name, value in SHAPE.as_json().items() if isinstance(value, int)},
}


@pytest.mark.nsys
def test_a_whole_run_passes_through_and_has_the_references_stages(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    stages = {}
    for workload in ("trtllm", "reference"):
        done = python(
            "-m", "dsa_profiler", "run", "--workload", workload, "--tracer", "nsys",
            "--model", str(tmp_path / "config.json"), "--mode", "context", "--seq-lens", "100",
            "--batch-sizes", "2", "--output", str(tmp_path), "--name", workload, "-q", "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = python(
            "-m", "dsa_profiler", "analyze", str(tmp_path / "traces" / workload), "--json"
        )
        [case] = json.loads(said.stdout)["cases"]
        stages[workload] = {stage["stage"] for stage in case["stages"]}
    assert stages["trtllm"] == stages["reference"]
    assert stages["trtllm"] == set(STAGES)
