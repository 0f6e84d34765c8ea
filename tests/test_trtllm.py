"""The adapter on a strict stand-in for tensorrt_llm, era by era: no GPU, no real package.

The stand-in (tests/fake_trtllm) keeps the real layout and signatures: a wrong keyword, order
or shape fails; its arithmetic is the reference's. Each era runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from dsa_profiler import marks
from dsa_profiler.cli import main
from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.trace import reader
from dsa_profiler.workloads import trtllm_faults

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


def python(
    *arguments: str, era: str = "D", sm: int = 90, **more: str
) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(FAKE),
        "FAKE_TRTLLM_ERA": era,
        "FAKE_TRTLLM_SM": str(sm),
        **more,
    }
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


def work(
    folder: Path, *cases: Case, era: str = "D", sm: int = 90, fault: str = "", **options: object
) -> tuple[subprocess.CompletedProcess[str], list[dict[str, object]]]:
    """One worker process; what it printed and the events it wrote."""
    order = {
        "workload": "trtllm", "model": SHAPE.as_json(), "cases": [c.as_json() for c in cases],
        "warmup": 1, "iterations": 2, "seed": 0, "device": "cpu", "tracer": "none",
        "outcome": "outcome.jsonl", "options": options,
    }  # fmt: skip
    (folder / "chunk.json").write_text(json.dumps(order))
    chunk = str(folder / "chunk.json")
    more = {"FAKE_TRTLLM_FAULT": fault} if fault else {}
    done = python("-m", "dsa_profiler.workloads.worker", chunk, era=era, sm=sm, **more)
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
    assert ready["hadamard"] == ("left out" if era == "A" else "none")
    assert not [e for e in events if e["event"] == "about"]


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


def test_the_initialisation_can_be_chosen_and_is_recorded(tmp_path: Path) -> None:
    case = Case("context", 2, 100, 8)
    done, events = work(tmp_path, case, weight_init="dummy")
    assert ends(events) == {case.slug: ("done", "")}, done.stderr
    [about] = [e["environment"] for e in events if e["event"] == "ready"]
    assert isinstance(about, dict)
    assert about["weight_init"] == "dummy"


@pytest.mark.parametrize(
    ("said", "slug", "cure"),
    [
        ("num_heads must be multiple of 64", "trtllm-heads", "--num-heads 64,128"),
        ("Expected kv.dtype() == torch::kBFloat16 to be true", "trtllm-kv-dtype", "Blackwell"),
        ("pos_ids must be contiguous", "trtllm-positions", "doctor --contract"),
        ("[TensorRT-LLM][ERROR] Assertion failed: max_input_uncached_seq_len > 0",
         "trtllm-metadata", "doctor --contract"),
        ("Can't allocate new blocks. No free blocks left.", "trtllm-blocks", "smaller"),
        ("No module named 'deep_gemm'", "trtllm-dependency", "container"),
        ("No module named 'fast_hadamard_transform'", "trtllm-dependency", "container"),
        ("Failed to compile: NVCC compilation failed, CUDA_HOME not set", "trtllm-jit",
         "CUDA_HOME"),
        ("CUDA error: no kernel image is available for execution on the device",
         "trtllm-architecture", "Hopper or Blackwell"),
        ("post_load_weights() must be called before forward()", "trtllm-weights", "report"),
        ("DSACacheManager.__init__() got an unexpected keyword argument 'layer_mask'",
         "trtllm-layout", "1.2.0rc5"),
    ],
)  # fmt: skip
def test_what_the_package_says_is_told_with_cause_and_cure(said: str, slug: str, cure: str) -> None:
    with pytest.raises(EnvironmentFault) as caught, trtllm_faults.explained():
        raise RuntimeError(said)
    assert caught.value.slug == slug
    assert said in caught.value.what
    assert cure in caught.value.cure


def test_what_is_not_known_and_what_has_a_name_pass_as_they_are() -> None:
    for error in (
        RuntimeError("nobody has seen this"),
        UsageError("weight-init", "num_heads must be multiple of 64", "c"),
        torch.OutOfMemoryError("CUDA out of memory: no free blocks"),
    ):
        with pytest.raises(type(error)) as caught, trtllm_faults.explained():
            raise error
        assert caught.value is error


def test_the_page_has_every_fault() -> None:
    page = (Path(__file__).parents[1] / "docs" / "trtllm.md").read_text("utf-8")
    slugs = {known.slug for _, known in trtllm_faults.FAULTS}
    assert [slug for slug in sorted(slugs) if f"`{slug}`" not in page] == []


@pytest.mark.parametrize(
    ("fault", "status", "said"),
    [
        ("pos_ids must be contiguous", "failed", "doctor --contract"),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "oom",
            "allocate 2.00 GiB; give smaller",
        ),
    ],
)
def test_a_case_that_fails_in_the_package_says_why_and_the_sweep_goes_on(
    tmp_path: Path, fault: str, status: str, said: str
) -> None:
    bad, good = Case("context", 2, 100, 8), Case("generation", 3, 99, 8)
    _, events = work(tmp_path, bad, good, fault=fault)
    assert ends(events)[bad.slug][0] == status
    assert said in str(ends(events)[bad.slug][1])
    assert ends(events)[good.slug] == ("done", "")


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
    plain = {(name, key): id(value) for name, m in step.layer.named_modules()
             for key, value in vars(m).items() if key != "core"}
    places = {k: id(v) for part in (step.start.dsa, step.start.attention, step.start.ops)
              for k, v in vars(part).items()}
    bits = {k: v.view(torch.uint8).numpy().tobytes() for k, v in step.layer.state_dict().items()}
    return plain, places, bits
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

CAPTURED = """
import json, sys, torch
import fake_layer
from dsa_profiler.model import Case, ModelShape
from dsa_profiler.workloads import trtllm
from dsa_profiler.workloads.instrument import unmarked

model = ModelShape.from_json(json.loads(sys.argv[1]))
step = trtllm.build(model, torch.device("cpu"), 0, {}).prepare(Case("generation", 2, 99, 8))
seen = []
forward = step.layer.forward
step.layer.forward = lambda *given: (seen.append(fake_layer.STREAMS[-1]), forward(*given))[1]
with torch.inference_mode():
    step(unmarked)
    torch.cuda.is_available = torch.cuda.is_current_stream_capturing = lambda: True
    step(unmarked)
    torch.cuda.is_current_stream_capturing = lambda: False
    step(unmarked)
print(seen, fake_layer.STREAMS)
"""


def test_several_streams_run_only_while_a_graph_is_captured() -> None:
    done = python("-c", CAPTURED, json.dumps(SHAPE.as_json()))
    assert done.stdout == "[False, True, False] [False]\n", done.stderr


def test_every_stage_is_marked_in_order_and_the_marks_come_off() -> None:
    done = python("-c", MARKED, json.dumps(SHAPE.as_json()), "none")
    assert json.loads(done.stdout) == STAGES, done.stderr


def test_the_marks_come_off_after_an_exception_too() -> None:
    done = python("-c", MARKED, json.dumps(SHAPE.as_json()), "sparse_attn")
    assert json.loads(done.stdout)[-1] == "sparse_attn", done.stderr


CONFIG = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "num_attention_heads": 8,
    **{name: value for name, value in SHAPE.as_json().items() if isinstance(value, int)},
}


BEFORE = (
    ("qkv_a_proj", "qkv_a_norm"), ("qkv_a_norm", "q_b_proj"), ("qkv_a_norm", "indexer_q_proj"),
    ("indexer_q_proj", "indexer_rope_norm"), ("indexer_k_proj", "indexer_rope_norm"),
    ("indexer_rope_norm", "indexer_quant"), ("indexer_quant", "indexer_cache"),
    ("indexer_cache", "mqa_logits"), ("mqa_logits", "topk"), ("topk", "index_convert"),
    ("index_convert", "sparse_attn"), ("q_b_proj", "q_absorb"), ("q_absorb", "sparse_attn"),
    ("rope_append", "sparse_attn"), ("sparse_attn", "v_up_proj"), ("v_up_proj", "o_proj"),
)  # fmt: skip
"""What needs what: any order of stages that keeps this is the same layer."""


def run(folder: Path, workload: str, *more: str, **env: str) -> Path:
    """A whole `run` of the tiny model; its session."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    done = python(
        "-m", "dsa_profiler", "run", "--workload", workload,
        "--model", str(folder / "config.json"), "--seq-lens", "100", "--batch-sizes", "2",
        "--output", str(folder), "--name", workload, *more, **env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "traces" / workload


def rounds(session: Path) -> dict[str, list[list[str]]]:
    """Case -> the stages of each iteration in the order in which they ran."""
    found: dict[str, list[list[str]]] = {}
    for path in session.glob("chunks/*/trace.sqlite"):
        trace, case, inside = reader.read(path), "", False
        for index in trace.ranges.start.argsort(kind="stable").tolist():
            mark = marks.parse(trace.strings[int(trace.ranges.text[index])])
            if mark is None:
                continue
            if mark.kind == "case":
                case = mark.value
            elif mark.kind in ("warmup", "iter"):
                inside = mark.kind == "iter"
                if inside:
                    found.setdefault(case, []).append([])
            elif inside:
                found[case][-1].append(mark.value)
    return found


@pytest.mark.nsys
def test_a_whole_run_passes_through_and_its_trace_aligns_with_the_references(
    tmp_path: Path,
) -> None:
    theirs, ours = (
        rounds(run(tmp_path, workload, "--tracer", "nsys", "--iterations", "3", "-q"))
        for workload in ("trtllm", "reference")
    )
    assert theirs.keys() == ours.keys()
    assert {slug.partition("-")[0] for slug in theirs} == {"context", "generation"}
    for slug, iterations in theirs.items():
        assert len(iterations) == len(ours[slug]) == 3
        for stages in (*iterations, *ours[slug]):
            assert set(stages) == set(STAGES), slug
            first = {stage: stages.index(stage) for stage in stages}
            last = {stage: n for n, stage in enumerate(stages)}
            assert [(a, b) for a, b in BEFORE if last[a] > first[b]] == [], slug
        assert iterations[0] == iterations[1] == iterations[2]
    assert theirs[next(s for s in theirs if s.startswith("context"))][0] == STAGES


def test_a_stage_without_a_place_for_its_mark_is_told_by_run_and_analyze(tmp_path: Path) -> None:
    session = run(
        tmp_path, "trtllm", "--tracer", "torch", "--mode", "context", "--json",
        era="A", FAKE_TRTLLM_WITHOUT_A_HOOK="1",
    )  # fmt: skip
    environment = json.loads((session / "session.json").read_text())["environment"]
    assert environment["unmarked_stages"] == ["sparse_attn"]
    said = python("-m", "dsa_profiler", "analyze", str(session), "--json")
    told = {w["slug"]: w["what"] for w in json.loads(said.stdout)["warnings"]}
    assert "TRTLLM 1.2.0rc6 has no place for the marks of sparse_attn" in told["stages-unmarked"]
    assert "fast_hadamard_transform is not installed" in told["hadamard-missing"]
    said = python("-m", "dsa_profiler", "analyze", str(session))
    assert "no place for the marks of sparse_attn" in said.stderr


def test_doctor_shows_the_probe_and_its_contract() -> None:
    said = python("-m", "dsa_profiler", "doctor", "--json", era="C")
    checks = {check["name"]: check for check in json.loads(said.stdout)["checks"]}
    assert checks["tensorrt_llm"]["state"] == "ok"
    assert checks["tensorrt_llm"]["what"] == "1.3.0rc10, layout of C, 0 differences"
    told = python("-m", "dsa_profiler", "doctor", "--contract", era="C").stdout
    contract = json.loads(told)["tensorrt_llm"]
    assert contract["drift"]["C"] == []
    assert contract["where"]["MLA"] == "tensorrt_llm._torch.modules.mla"
    assert any("DSACacheManager: does not take" in line for line in contract["drift"]["D"])


@pytest.mark.skipif(find_spec("tensorrt_llm") is not None, reason="tensorrt_llm is here")
def test_without_the_package_run_points_to_the_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--workload", "trtllm", "--output", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "NVIDIA's TensorRT-LLM container" in said
    assert "pip install" not in said
    assert list(tmp_path.iterdir()) == []
