"""The Hopper workload without a GPU: finding, probing, and every argument's layout."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import kernels_stand_in as stand_in
import pytest
import torch
from kernels_judge import assert_small, errors
from kernels_stand_in import BARE, EXTRAS
from reference_oracle import distance, wrong_picks

from dsa_profiler.capture import doctor
from dsa_profiler.errors import EnvironmentFault, UsageError
from dsa_profiler.model import Case, ModelShape, load_model
from dsa_profiler.workloads import kernels_core, kernels_source
from dsa_profiler.workloads.instrument import unmarked
from dsa_profiler.workloads.kernels import HopperKernels, build
from dsa_profiler.workloads.kernels_check import settled
from dsa_profiler.workloads.kernels_contract import call_difference, contract
from dsa_profiler.workloads.reference import Reference

CPU = torch.device("cpu")
MODEL = replace(
    load_model("deepseek-v3.2"),
    hidden_size=96,
    q_lora_rank=64,
    qk_nope_head_dim=16,
    v_head_dim=16,
    index_n_heads=32,
    max_position_embeddings=8192,
)
"""Small around a core of true geometry: that is what the kernels are compiled for."""

CASES = [
    Case("context", 1, 5, 3),
    Case("context", 3, 70, 2),
    Case("context", 2, 3, 2, prefix=66),
    Case("context", 2, 3, 2, "fp8", prefix=66),
    Case("generation", 1, 63, 3),
    Case("generation", 3, 64, 64),
    Case("generation", 2, 65, 80),
    Case("generation", 3, 130, 3, "fp8"),
]
BEYOND_TOPK = [Case("context", 2, 3, 2, prefix=2047), Case("generation", 2, 2100, 2)]


def workload(model: ModelShape = MODEL, *, extras: bool, **options: int) -> HopperKernels:
    kernels = replace(BARE, **EXTRAS) if extras else BARE
    return HopperKernels(settled(kernels, CPU), model, CPU, 0, options)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.slug)
def test_the_layer_on_these_calls_is_the_reference(case: Case) -> None:
    """Every key is selected here, so that only bf16 (fp8) rounding is left between the two."""
    got = workload(extras=False).prepare(case)(unmarked)
    want = Reference(MODEL, CPU, 0).prepare(case)(unmarked)
    assert got.shape == want.shape
    assert distance(got, want) < 1e-2


@pytest.mark.parametrize("case", [*CASES, *BEYOND_TOPK], ids=lambda c: c.slug)
def test_and_so_it_is_with_the_packages_own_helpers(case: Case) -> None:
    """In bfloat16, on poisoned buffers, judged as the real kernels are on a GPU."""
    found = errors(settled(replace(BARE, **EXTRAS), CPU), MODEL, case, CPU, seed=3)
    assert_small(found, case)


def test_fp8_rows_are_as_far_off_as_e4m3_rounds() -> None:
    """Three bits of mantissa: half a step's mean square over a binade, 2.55e-2 of a value. No
    kernel can do better, and the bound of 3e-2 on stored rows leaves it room for nothing else.
    """
    case = Case("generation", 3, 130, 8, "fp8")
    found = errors(settled(replace(BARE, **EXTRAS), CPU), MODEL, case, CPU, seed=11)
    assert abs(found["rows"] - 2**-3 / 12**0.5 * 0.5**0.5) < 1e-3
    assert found["output"] < 1e-3 < found["whole"]


@pytest.mark.parametrize("case", BEYOND_TOPK, ids=lambda c: c.slug)
def test_beyond_topk_the_same_keys_are_selected(case: Case) -> None:
    """The picks are judged by the reference's scores, then the outputs agree."""
    got, want = workload(extras=False), Reference(MODEL, CPU, 0)
    core, x = got.core_and_input(case, got.layer_of(case.num_heads))
    plain, y = want.core_and_input(case, want.layer_of(case.num_heads))
    assert torch.equal(x, y)
    seen = {}
    logits = plain.logits
    plain.logits = lambda *a: seen.setdefault("scores", logits(*a))
    expected = want.layer_of(case.num_heads).forward(y, plain, unmarked)
    out = got.layer_of(case.num_heads).forward(x, core, unmarked)
    assert wrong_picks(core.picks, seen["scores"], 2048, 1e-5) == 0
    assert distance(out, expected) < 1e-2


def test_context_scores_are_cut_into_buffers_of_bounded_size(monkeypatch) -> None:
    case = Case("context", 5, 40, 2)
    want = workload(extras=False).prepare(case)(unmarked)
    monkeypatch.setattr(kernels_core, "SCORES_PER_CHUNK", 2 * 40 * 2 * 40)
    made = workload(extras=False)
    core, x = made.core_and_input(case, made.layer_of(2))
    assert [c.seqs for c in core.chunks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert torch.equal(made.layer_of(2).forward(x, core, unmarked), want)


def test_the_decode_scores_can_be_as_wide_as_a_servers() -> None:
    case = Case("generation", 2, 100, 2)
    made = workload(extras=False, max_seq_len=4000)
    core, x = made.core_and_input(case, made.layer_of(2))
    assert core.columns == 4032
    out = made.layer_of(2).forward(x, core, unmarked)
    assert torch.equal(out, workload(extras=False).prepare(case)(unmarked))
    assert made.environment["max_seq_len"] == "4000"


def test_the_fp8_schedule_is_planned_once_a_case() -> None:
    """Its kernel belongs to the first step; later ones, and a graph, take the plan that it made."""
    plans = []

    def sparse_decode(*arguments):
        plans.append(arguments[5])  # tile_scheduler_metadata
        return stand_in.sparse_decode(*arguments)

    kernels = replace(BARE, sparse_decode=sparse_decode)
    step = HopperKernels(kernels, MODEL, CPU, 0, {}).prepare(Case("generation", 2, 70, 2, "fp8"))
    for _ in range(3):
        step(unmarked)
    assert plans[0] is None
    assert plans[1] is not None
    assert plans[2] is not None


@pytest.mark.parametrize(("heads", "padded"), [(1, 64), (64, 64), (65, 128), (128, 128)])
def test_heads_are_padded_as_servers_do(heads: int, padded: int) -> None:
    assert kernels_core.padded_heads(heads) == padded


def test_what_no_kernel_can_do_is_named() -> None:
    with pytest.raises(UsageError, match="129 local heads"):
        kernels_core.padded_heads(129)
    with pytest.raises(UsageError, match="no float32 KV"):
        workload(extras=False).prepare(Case("context", 1, 5, 2, "float32"))
    with pytest.raises(UsageError, match="index_n_heads = 16"):
        kernels_core.check_model(replace(MODEL, index_n_heads=16))
    for name in ("deepseek-v3.2", "glm-5"):
        kernels_core.check_model(load_model(name))


@pytest.mark.parametrize("name", list(EXTRAS))
def test_a_helper_that_disagrees_or_raises_is_not_used(name: str) -> None:
    good = settled(replace(BARE, **EXTRAS), CPU)
    assert good.environment == {f"op_{extra}": "package" for extra in EXTRAS}

    def raises(*_: object) -> None:
        raise TypeError("changed\nin this version")

    for op, reason in (
        (lambda *_: None, "disagrees"),
        (raises, "TypeError: changed"),
        (None, "absent"),
    ):
        kernels = settled(replace(BARE, **{**EXTRAS, name: op}), CPU)
        assert getattr(kernels, name) is None
        assert kernels.environment[f"op_{name}"] == f"torch ({reason})"
        assert all(getattr(kernels, other) for other in EXTRAS if other != name)


def _tree(root: Path, layout: str) -> None:
    """The files of a wheel or of the bundle, empty."""
    ops, gemm = {
        "installed": ("", "third_party/deep_gemm"),
        "wheel": ("vllm", "vllm/third_party/deep_gemm"),
        "bundle": ("vllm_ops", "deep_gemm"),
        "bundle's parent": ("site/vllm_ops", "site/deep_gemm"),
    }[layout]
    for folder in (ops, gemm):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / ops / "_flashmla_C.abi3.so").touch()
    library = "_C_stable_libtorch.sm90.so" if "bundle" in layout else "_C_stable_libtorch.abi3.so"
    (root / ops / library).touch()
    (root / gemm / "__init__.py").touch()


@pytest.mark.parametrize("layout", ["installed", "wheel", "bundle", "bundle's parent"])
def test_parts_are_found_wherever_a_package_is_unpacked(tmp_path: Path, layout: str) -> None:
    _tree(tmp_path, layout)
    (tmp_path / "vllm-0.26.0.dist-info").mkdir()
    parts = kernels_source.find(str(tmp_path))
    assert parts.flashmla.name == "_flashmla_C.abi3.so"
    assert parts.ops.name.startswith("_C_stable_libtorch")
    assert parts.deep_gemm.name == "deep_gemm"
    assert parts.version == "0.26.0"


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("vllm/_flashmla_C.abi3.so", "_flashmla_C"),
        ("vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch"),
        ("vllm/third_party/deep_gemm/__init__.py", "deep_gemm/"),
    ],
)
def test_a_missing_part_is_named_with_its_cure(tmp_path: Path, gone: str, named: str) -> None:
    _tree(tmp_path, "wheel")
    (tmp_path / gone).unlink()
    with pytest.raises(EnvironmentFault) as caught:
        kernels_source.find(str(tmp_path))
    assert caught.value.slug == "kernels-missing"
    assert named in caught.value.what
    assert "vllm==0.26.0" in caught.value.cure
    assert "--kernels-path" in caught.value.cure


def test_without_the_package_it_says_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "sgl_kernel", None)
    with pytest.raises(EnvironmentFault, match="vllm is not installed"):
        kernels_source.find()
    with pytest.raises(EnvironmentFault, match="sgl_kernel is not installed"):
        kernels_source.find(source="sglang")
    with pytest.raises(UsageError, match="unknown source 'trtllm'"):
        kernels_source.find(source="trtllm")


def test_the_second_source_is_found_with_the_first_ones_deep_gemm(tmp_path: Path) -> None:
    _tree(tmp_path, "wheel")
    with pytest.raises(EnvironmentFault, match=r"no flashmla_ops\*.so, common_ops\*.so"):
        kernels_source.find(str(tmp_path), "sglang")
    (tmp_path / "sgl_kernel" / "sm90").mkdir(parents=True)
    (tmp_path / "sgl_kernel" / "flashmla_ops.abi3.so").touch()
    (tmp_path / "sgl_kernel" / "sm90" / "common_ops.abi3.so").touch()
    parts = kernels_source.find(str(tmp_path), "sglang")
    assert (parts.flashmla.name, parts.ops.parent.name) == ("flashmla_ops.abi3.so", "sm90")
    assert parts.deep_gemm.parent.name == "third_party"


@pytest.mark.parametrize("case", [CASES[3], CASES[7], *BEYOND_TOPK], ids=lambda c: c.slug)
def test_the_second_sources_calls_fit_as_well(case: Case) -> None:
    def fast_topk(score, indices, lengths, row_starts) -> None:
        starts = torch.zeros_like(lengths) if row_starts is None else row_starts
        strides = score.stride()
        stand_in.topk_prefill(
            score, starts, starts + lengths, indices, len(score), *strides, indices.shape[1]
        )

    ops = {
        "sparse_prefill": lambda *a: stand_in.sparse_prefill(*a, None),
        "sparse_decode": lambda *a: stand_in.sparse_decode(*a, None),
        "fast_topk": fast_topk,
    }
    found = errors(replace(BARE, **kernels_source.adapted(ops)), MODEL, case, CPU, seed=5)
    assert_small(found, case)


def test_a_library_that_is_none_is_named(tmp_path: Path) -> None:
    _tree(tmp_path, "wheel")
    with pytest.raises(EnvironmentFault) as caught:
        kernels_source.load(kernels_source.find(str(tmp_path)))
    assert caught.value.slug == "kernels-broken"
    assert "_flashmla_C.abi3.so" in caught.value.what


@pytest.mark.parametrize(
    ("text", "slug", "word"),
    [
        ("x.so: undefined symbol: _ZN3c106detail", "kernels-other-torch", "another torch"),
        (
            "libcudart.so.13: cannot open shared object file: No such file or directory",
            "kernels-library",
            "libcudart.so.13",
        ),
        ("invalid ELF header\nmore", "kernels-broken", "invalid ELF header"),
    ],
)
def test_loader_errors_are_told_apart(text: str, slug: str, word: str) -> None:
    wrapped = OSError("Could not load this library: /somewhere/_flashmla_C.abi3.so")
    wrapped.__cause__ = OSError(text)
    fault = kernels_source._load_fault("_flashmla_C.abi3.so", wrapped)
    assert fault.slug == slug
    assert word in fault.what
    assert "\n" not in fault.what


ABS = "(Tensor self) -> Tensor"


@pytest.mark.parametrize(
    ("name", "schema", "what"),
    [
        ("nowhere.call", ABS, "no op nowhere.call"),
        ("aten.abs", "(Tensor input) -> Tensor", "has Tensor self -> Tensor and lacks"),
        ("aten.abs", "(Tensor? self) -> Tensor", "lacks Optional"),
        ("aten.abs", "(Tensor self) -> ()", "lacks Tensor self -> nothing"),
        ("aten.mm", "(Tensor mat2, Tensor self) -> Tensor", "Tensor mat2"),
        ("aten.rms_norm", "(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, "
         "float? eps=1.0) -> Tensor", "lacks Optional.float. eps=1.0"),
    ],
)  # fmt: skip
def test_an_op_with_another_schema_is_refused(name: str, schema: str, what: str) -> None:
    with pytest.raises(EnvironmentFault, match=what) as caught:
        kernels_source._op(name, schema)
    assert caught.value.slug == "kernels-changed"
    found, changed = kernels_source._optional({"it": (name, schema)})
    assert (found, len(changed)) == ({"it": None}, 1)


def test_an_op_with_the_recorded_schema_is_taken() -> None:
    assert kernels_source._op("aten.abs", ABS) is torch.ops.aten.abs.default


PAGED = (
    "fp8_paged_mqa_logits(q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor], max_context_len:"
    " typing.SupportsInt, clean_logits: bool = False, indices: torch.Tensor | None = None)"
    " -> torch.Tensor\n"
)


@pytest.mark.parametrize(
    ("doc", "wanted", "told"),
    [
        (PAGED, "q, kv, max_context_len, clean_logits=False, indices=None", ""),
        (PAGED, "q, kv, max_context_len, clean_logits=True, indices=None", "has clean_logits=F"),
        (PAGED, "kv, q, max_context_len, clean_logits=False, indices=None", "another order"),
        (PAGED, "q, kv, max_context_len, clean_logits=False", "has indices=None"),
        ("get_num_sms() -> int", "", ""),
        (None, "q", "tells no signature"),
    ],
)
def test_a_python_call_is_known_by_its_signature(doc, wanted: str, told: str) -> None:
    def call() -> None: ...

    call.__doc__ = doc
    found = call_difference(call, wanted)
    assert told in found
    assert bool(found) == bool(told)


@pytest.fixture(scope="module")
def recorded():
    """The stand-ins behind torch's dispatcher, with the schemas that the packages register."""
    stand_ins = {**{n: getattr(stand_in, n) for n in kernels_source.REQUIRED}, **EXTRAS}
    names = {**kernels_source.REQUIRED, **kernels_source.OPTIONAL}
    schemas = contract()["vllm"]["ops"]
    assert set(schemas) == set(names.values())
    library = torch.library.Library("dsa_recorded", "DEF")
    for name, op in names.items():
        library.define(name + schemas[op])
        library.impl(name, stand_ins[name], "CPU")
    ops = {name: getattr(torch.ops.dsa_recorded, name).default for name in names}
    yield replace(BARE, **ops)
    library._destroy()


@pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[6], CASES[7]], ids=lambda c: c.slug)
def test_every_call_binds_to_the_schema_of_the_package(recorded, case: Case) -> None:
    """Torch itself checks number, order and types of the arguments, and of what comes back."""
    assert_small(errors(settled(recorded, CPU), MODEL, case, CPU, seed=7), case)
    names = contract()["deep_gemm"]["calls"]
    for name, call in (
        ("fp8_mqa_logits", stand_in.mqa_logits),
        ("fp8_paged_mqa_logits", stand_in.paged_mqa_logits),
    ):
        theirs = [part.partition("=")[2] for part in names[name].split(", ")]
        ours = inspect.signature(call).parameters.values()
        given = ["" if p.default is inspect.Parameter.empty else str(p.default) for p in ours]
        assert given == theirs


def test_a_long_fp8_context_is_attended_in_several_calls(monkeypatch) -> None:
    """One call's strides must fit into 32 bits: 65,536 tokens of 128 heads would not."""
    assert kernels_core.QUERIES_PER_CALL * 128 * 576 < 1 << 31
    case = Case("context", 3, 50, 2, "fp8", prefix=20)
    want = workload(extras=False).prepare(case)(unmarked)
    monkeypatch.setattr(kernels_core, "QUERIES_PER_CALL", 64)
    made = workload(extras=False)
    core, x = made.core_and_input(case, made.layer_of(2))
    for _ in range(2):
        assert torch.equal(made.layer_of(2).forward(x, core, unmarked), want)
    assert set(core.plans) == {64, 150 % 64}


def test_the_machine_is_checked_before_anything_is_loaded(monkeypatch, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="needs a CUDA GPU"):
        build(load_model("deepseek-v3.2"), CPU, 0, {})
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    with pytest.raises(EnvironmentFault, match="this GPU is SM 100"):
        kernels_source.check_machine(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match="no nvcc"):
        kernels_source.check_machine(gpu)
    monkeypatch.setenv("DG_JIT_NVCC_COMPILER", sys.executable)
    kernels_source.check_machine(gpu)


def test_the_doctor_says_what_an_installed_package_lacks(tmp_path: Path, monkeypatch) -> None:
    _tree(tmp_path, "wheel")
    monkeypatch.setenv("DSA_KERNELS_PATH", str(tmp_path))
    check = doctor._kernels()
    assert (check.name, check.state) == ("kernels", "absent")
    assert "_flashmla_C.abi3.so does not load" in check.what
    assert "vllm==0.26.0 beside torch==2.11.0" in check.cure

    about = {"kernels_version": "0.26.1", "kernels_changed": "_C.rms_norm has int x"}
    monkeypatch.setattr(doctor, "_ask", lambda *_: (json.dumps(about), ""))
    assert doctor._kernels().what == (
        "vllm 0.26.1, calls as recorded; not used: _C.rms_norm has int x"
    )
