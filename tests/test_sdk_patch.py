"""The patch of aiconfigurator 0.7.0: byte for byte on and off, and right once it is on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import aiconfigurator_packages as real
import pytest

from dsa_profiler.analysis import roofline, systems
from dsa_profiler.export import aiconfigurator, read_back
from dsa_profiler.export.aic_package import Package, Target
from dsa_profiler.export.read_back import Setup
from dsa_profiler.model import Case, load_model

PATCH = real.ROOT / "sdk_patch"
V32 = "DeepseekV32ForCausalLM"
SHEET = {
    "float16_tc_flops": 989e12, "fp8_tc_flops": 1979e12, "mem_bw": 4.8e12, "sm_version": 90,
}  # fmt: skip


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"patch_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


apply = load(PATCH / "apply.py")
dsa = load(PATCH / "legacy" / "dsa.py")


def state(package: Package) -> dict[str, bytes]:
    return {
        str(p.relative_to(package.home)): p.read_bytes()
        for p in sorted((package.home / "sdk").rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


def patched(folder: Path) -> Package:
    package = real.copied(7, folder)
    assert apply.main(["apply", "--package", str(folder)]) == 0
    return package


def python(package: Package, code: str, *args: str) -> Any:
    run = subprocess.run(
        [str(package.python), "-c", code, *args],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(package.home.parent)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return patched(tmp_path_factory.mktemp("patched"))


@pytest.fixture(scope="module")
def root(seven: Package, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H200's shipped rows in the layout of 0.7."""
    folder = tmp_path_factory.mktemp("tables") / "root"
    at = Target(seven, real.SYSTEM, real.BACKEND, "1.2.0rc5+dsa", False)
    aiconfigurator.write_tables(real.shipped_tables(), folder, at, runtime="1.3.0rc20")
    return folder


def test_apply_and_revert_leave_every_byte(tmp_path: Path) -> None:
    package = real.copied(7, tmp_path)
    before = state(package)
    where = ["--package", str(tmp_path)]
    assert apply.main(["check", *where]) == 6
    assert apply.main(["apply", *where]) == 0
    after = state(package)
    assert set(after) - set(before) == {"sdk/dsa.py"}
    assert all(after[name].startswith(data) for name, data in before.items())
    assert apply.main(["check", *where]) == 0
    assert apply.main(["apply", *where]) == 0
    assert state(package) == after
    assert apply.main(["revert", *where]) == 0
    assert state(package) == before
    assert apply.main(["revert", *where]) == 0
    assert state(package) == before


def test_a_half_applied_patch_is_completed_or_taken_off(tmp_path: Path) -> None:
    package = real.copied(7, tmp_path)
    before = state(package)
    where = ["--package", str(tmp_path)]
    apply.main(["apply", *where])
    whole = state(package)
    for lost in ("sdk/models.py", "sdk/dsa.py"):
        path = package.home / lost
        if lost in before:
            path.write_bytes(before[lost])
        else:
            path.unlink()
        assert apply.main(["check", *where]) == 6
        assert apply.main(["apply", *where]) == 0
        assert state(package) == whole
    (package.home / "sdk" / "dsa.py").unlink()
    assert apply.main(["revert", *where]) == 0
    assert state(package) == before


@pytest.mark.parametrize("action", ["check", "apply", "revert"])
def test_bytes_of_an_unknown_release_are_left_alone(
    tmp_path: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package = real.copied(7, tmp_path)
    models = package.home / "sdk" / "models.py"
    models.write_bytes(models.read_bytes() + b"# mine\n")
    before = state(package)
    assert apply.main([action, "--package", str(tmp_path)]) == 4
    assert "models.py is not the one of a known release (0.7.0)" in capsys.readouterr().err
    assert state(package) == before


def test_a_foreign_file_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    package = real.copied(7, tmp_path)
    (package.home / "sdk" / "dsa.py").write_text("mine = 1\n")
    before = state(package)
    assert apply.main(["apply", "--package", str(tmp_path)]) == 4
    assert state(package) == before


def test_a_failure_on_the_way_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = real.copied(7, tmp_path)
    before = state(package)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply.os, "fdopen", full)
    assert apply.main(["apply", "--package", str(tmp_path)]) == 2
    assert state(package) == before


@pytest.mark.parametrize(("minor", "word"), [(8, "knows DSA"), (10, "knows DSA"), (12, "engine")])
def test_newer_releases_are_sent_to_the_tables(
    minor: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(real.package(minor).home.parent)
    assert apply.main(["apply", "--package", home]) == 3
    assert word in capsys.readouterr().err


def test_no_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert apply.main(["check", "--package", str(tmp_path)]) == 3
    assert "no aiconfigurator in" in capsys.readouterr().err


@pytest.fixture(scope="module")
def answered(
    seven: Package, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> read_back.Verdict:
    """Every row and one estimate asked of the patched package at once: it loads slowly."""
    folder = str(real.model_folder(tmp_path_factory.mktemp("model")))
    return read_back.verify(root, read_back.entries(root)[0], seven, Setup(model=folder))


def test_every_row_comes_back_verbatim(answered: read_back.Verdict) -> None:
    assert (answered.rows, answered.mismatches, answered.error) == (6848, (), "")


def test_the_estimate_is_that_of_the_newest_release_on_the_same_rows(
    answered: read_back.Verdict, tmp_path: Path
) -> None:
    at = Target(real.package(12), real.SYSTEM, real.BACKEND, "1.3.0rc20+dsa", False)
    aiconfigurator.write_tables(real.shipped_tables(), tmp_path / "new", at, runtime="1.3.0rc20")
    entry = read_back.entries(tmp_path / "new")[0]
    new = read_back.verify(tmp_path / "new", entry, real.package(12), Setup()).after
    old = answered.after
    assert new is not None
    assert old is not None, answered.refused
    assert old.ttft == pytest.approx(new.ttft, rel=0.03)
    spent = [e.ttft * e.context_share for e in (old, new)]
    assert spent[0] == pytest.approx(spent[1], rel=1e-9)
    decode = [e.tpot * e.generation_share for e in (old, new)]
    assert decode[0] == pytest.approx(decode[1], rel=1e-3)


MODEL = """
import json, sys
from aiconfigurator.sdk import common, config, models, operations
def ops(**changes):
    chosen = config.ModelConfig(tp_size=8, moe_tp_size=1, moe_ep_size=8, **changes)
    model = models.get_model(sys.argv[1], chosen, 'trtllm')
    return model, chosen, {op._name: (type(op).__name__, op._scale_factor, op.get_weights())
        for op in model.context_ops + model.generation_ops}
"""


def test_one_op_is_the_whole_module_of_all_layers(seven: Package, tmp_path: Path) -> None:
    code = MODEL + "model, chosen, found = ops()\n"
    code += "print(json.dumps([found, chosen.kvcache_quant_mode.name, chosen.fmha_quant_mode.name,"
    code += " model.model_family]))"
    folder = str(real.model_folder(tmp_path))
    ops, kv, fmha, family = python(seven, code, folder)
    assert (kv, fmha, family) == ("float16", "float16", "DEEPSEEK")
    assert ops["context_attention"][:2] == ["ContextDSA", 61]
    assert ops["generation_attention"][:2] == ["GenerationDSA", 61]
    contained = ("downscale", "q_b_proj", "kv_b_proj", "bmm", "_proj_gemm")
    assert not [name for name in ops if any(word in name for word in contained)]
    assert {"context_moe", "generation_moe", "context_logits_gemm"} <= set(ops)


def test_the_weights_of_what_it_replaces_carry_over(seven: Package, tmp_path: Path) -> None:
    """FP8: 61 x (2112 h + 24576/8 q + 32768/8 kv + h 16384/8) + the indexer, whole on each GPU."""
    folder = str(real.model_folder(tmp_path))
    ops = python(seven, MODEL + "print(json.dumps(ops()[2]))", folder)
    replaced = 2112 * 7168 + 3072 * 1536 + 4096 * 512 + 7168 * 2048
    indexer = 1536 * 8192 + 7168 * (128 + 64)
    assert ops["context_attention"][2] == 61 * (replaced + indexer)


def test_three_and_fifty_eight_layers_are_an_option(seven: Package, tmp_path: Path) -> None:
    code = "import os; os.environ['AICONFIGURATOR_DSA_LAYERS'] = 'first_k_dense'\n" + MODEL
    code += "model = ops()[0]\n"
    code += "print(json.dumps([[o._name, type(o).__name__, o._scale_factor] for o in"
    code += " model.context_ops + model.generation_ops]))"
    ops = python(seven, code, str(real.model_folder(tmp_path)))
    attention = [tuple(o) for o in ops if o[0].endswith("_attention")]
    assert attention == [
        ("context_attention", "ContextMLA", 3),
        ("context_attention", "ContextDSA", 58),
        ("generation_attention", "GenerationMLA", 3),
        ("generation_attention", "GenerationDSA", 58),
    ]
    assert ["context_proj_gemm", "GEMM", 3] in ops
    assert ["context_moe", "MoE", 61] in ops


def test_an_unknown_layer_rule_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dsa.LAYER_RULE, "58")
    with pytest.raises(ValueError, match="use all_dsa or first_k_dense"):
        dsa.DeepSeekV32Config.from_environment()


def test_deepseek_v3_is_as_before(seven: Package) -> None:
    code, name = MODEL + "print(json.dumps(ops()[2]))", "deepseek-ai/DeepSeek-V3"
    assert python(seven, code, name) == python(real.package(7), code, name)


def test_wide_expert_parallelism_is_refused(seven: Package, tmp_path: Path) -> None:
    code = MODEL + (
        "try:\n    ops(enable_wideep=True)\n    print(json.dumps('accepted'))\n"
        "except NotImplementedError as error:\n    print(json.dumps(str(error)))"
    )
    assert "has no DSA" in python(seven, code, str(real.model_folder(tmp_path)))


QUERY = """
import json, sys
from aiconfigurator.sdk import common, perf_database
import os, yaml
db = object.__new__(perf_database.PerfDatabase)  # without the other tables, which load slowly
db.systems_root, db.backend, db.version = sys.argv[1], 'trtllm', sys.argv[2]
db.system_spec = yaml.safe_load(open(os.path.join(sys.argv[1], 'h200_sxm.yaml')))
db._default_database_mode = common.DatabaseMode.SILICON
half, kv = common.FMHAQuantMode.float16, common.KVCacheQuantMode.float16
def context(s, heads=16, gemm='fp8_block', mode=None, b=1):
    return db.query_context_dsa(b, s, 0, heads, kv, half, common.GEMMQuantMode[gemm],
                                database_mode=mode and common.DatabaseMode[mode])
"""


def test_modes_and_the_kind_of_answer(seven: Package, root: Path) -> None:
    """SILICON without a row raises, HYBRID answers with the speed of light, SOL always does."""
    code = QUERY + (
        "from aiconfigurator.sdk.performance_result import PerformanceResult\n"
        "row, sol = context(4096), context(4096, mode='SOL')\n"
        "full = context(4096, mode='SOL_FULL')\n"
        "hybrid = context(4096, gemm='float16', mode='HYBRID')\n"
        "none = context(4096, gemm='int8_wo', mode='HYBRID')\n"
        "try:\n    context(4096, gemm='int8_wo'); said = ''\n"
        "except perf_database.PerfDataNotAvailableError as error:\n    said = str(error)\n"
        "print(json.dumps([isinstance(row, PerformanceResult), row, row.energy, sol, full, hybrid,"
        " none, context(4096, gemm='int8_wo', mode='SOL'), said]))"
    )
    kind, row, energy, sol, full, hybrid, none, floor, said = python(
        seven, code, str(root), "1.2.0rc5+dsa"
    )
    assert (kind, row, energy) == (True, 6.9658, 0.0)
    assert 0 < sol < row
    assert full[0] == sol <= full[1] + full[2]
    assert hybrid == pytest.approx(7.0016, rel=0.02)
    assert none == floor
    assert "no context DSA rows for" in said


def rows(*cells: tuple[int, int, int, int, float], phase: str = "generation") -> str:
    """A table in upstream's columns: (heads, batch, isl, step, ms) each."""
    head = "op_name,architecture,mla_dtype,kv_cache_dtype,gemm_type,num_heads,batch_size,isl,step,"
    lines = [head + "latency,power"]
    for heads, batch, isl, step, ms in cells:
        kinds = f"dsa_{phase}_module,{V32},bfloat16,bfloat16,bfloat16"
        lines.append(f"{kinds},{heads},{batch},{isl},{step},{ms},500")
    return "\n".join(lines) + "\n"


def lookup(folder: Path, sizes: tuple[int, int, int, int], phase: str = "generation") -> Any:
    dsa.load.cache_clear()
    kinds = (V32, "float16", "float16", "float16")
    return dsa.lookup(str(folder), phase, kinds, sizes, lambda h, p, s, b: float(s * b), 2048)


def test_between_points_a_line_and_beyond_them_the_utilisation(tmp_path: Path) -> None:
    text = rows((16, 1, 1, 255, 1.0), (16, 1, 1, 511, 2.0), (16, 2, 1, 511, 3.0))
    (tmp_path / "dsa_generation_module_perf.txt").write_text(text)
    assert lookup(tmp_path, (16, 0, 256, 1)) == (1.0, 500.0)
    assert lookup(tmp_path, (16, 0, 384, 1)) == pytest.approx((1.5, 750.0))
    assert lookup(tmp_path, (16, 0, 1024, 1))[0] == pytest.approx(2.0 * 1024 / 512)
    assert lookup(tmp_path, (16, 0, 512, 8))[0] == pytest.approx(3.0 * 4)


def test_no_line_crosses_the_step_at_top_k(tmp_path: Path) -> None:
    text = rows((16, 64, 1, 511, 1.0), (16, 64, 1, 1023, 1.1), (16, 64, 1, 2048, 5.0),
                (16, 64, 1, 4096, 4.0))  # fmt: skip
    (tmp_path / "dsa_generation_module_perf.txt").write_text(text)
    assert lookup(tmp_path, (16, 0, 2048, 64))[0] == pytest.approx(1.1 + 0.1 * 1024 / 512)
    assert lookup(tmp_path, (16, 0, 2049, 64))[0] == 5.0


def test_the_seeds_csv_is_read_with_its_own_axes(tmp_path: Path) -> None:
    header = "framework,version,device,op_name,kernel_source,dsa_dtype,num_heads,index_n_heads,"
    header += "index_topk,batch_size,isl,tp_size,step,latency\n"
    row = "TRTLLM,1.2.0rc5,NVIDIA H20-3e,dsa_generation,default,bfloat16,128,64,2048,1,131071,1,1,"
    (tmp_path / "dsa_generation_perf.txt").write_text(header + row + "0.54\n")
    assert lookup(tmp_path, (128, 0, 131072, 1))[0] == 0.54


@pytest.mark.parametrize("ms", ["0", "nan", "-1", "inf", "fast", ""])
def test_a_row_without_a_latency_is_named_with_its_line(tmp_path: Path, ms: str) -> None:
    path = tmp_path / "dsa_generation_module_perf.txt"
    path.write_text(rows((16, 1, 1, 255, 1.0)).replace(",1.0,", f",{ms},"))
    with pytest.raises(dsa.DsaTableError, match=r"perf\.txt:2"):
        lookup(tmp_path, (16, 0, 256, 1))


def test_a_key_with_two_latencies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dsa_generation_module_perf.txt"
    path.write_text(rows((16, 1, 1, 255, 1.0), (16, 1, 1, 255, 1.5)))
    with pytest.raises(dsa.DsaTableError, match="comes twice"):
        lookup(tmp_path, (16, 0, 256, 1))


@pytest.mark.parametrize("gemm", ["bfloat16", "fp8"])
@pytest.mark.parametrize(
    "case",
    [
        Case("context", 1, 1, 128),
        Case("context", 1, 4096, 16),
        Case("context", 16, 1024, 128),
        Case("context", 2, 512, 64, prefix=8192),
        Case("context", 1, 32768, 1),
        Case("generation", 1, 1, 128),
        Case("generation", 64, 2047, 16),
        Case("generation", 1024, 16383, 128),
        Case("generation", 8, 131071, 8, dtype="fp8"),
    ],
    ids=lambda c: c.slug if isinstance(c, Case) else str(c),
)
def test_its_speed_of_light_is_the_projects_roofline(case: Case, gemm: str) -> None:
    system = systems.load("h200_sxm", datasheet=True)
    sheet = {
        **SHEET,
        "float16_tc_flops": system.bfloat16,
        "fp8_tc_flops": system.fp8,
        "mem_bw": system.bandwidth,
    }
    ours = roofline.floor(load_model("deepseek-v3.2"), case, system, gemm)  # type: ignore[arg-type]
    theirs = dsa.speed_of_light(
        dsa.DeepSeekV32Config(),
        sheet,
        case.phase,
        case.batch_size,
        case.kv_len,
        case.prefix,
        case.num_heads,
        {"bfloat16": 2, "fp8": 1}[gemm],
        {"bfloat16": 2, "fp8": 1}[case.dtype],
    )
    assert theirs[0] == pytest.approx(ours.floor_ns / 1e6, rel=1e-9)
