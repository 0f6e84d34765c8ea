"""Defaults < TOML < flags, strict keys, and a plan that follows."""

from dataclasses import fields

import pytest

from dsa_profiler import config
from dsa_profiler.config import RunConfig
from dsa_profiler.errors import InputError, UsageError
from dsa_profiler.model import load_model


def toml(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, "utf-8")
    return str(path)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = toml(tmp_path, 'mode = "context"\niterations = 7\nbatch_sizes = [1, 2]\ntimeout = 30\n')
    got = config.load(path, {"mode": "generation", "iterations": None})
    assert (got.mode, got.iterations, got.batch_sizes, got.timeout) == ("generation", 7, (1, 2), 30)
    assert got.seed == RunConfig().seed


def test_every_field_can_stand_in_a_file(tmp_path):
    given = {
        "mode": "context", "preset": "smoke", "batch_sizes": (1,), "seq_lens": (2,),
        "num_heads": (64,), "prefixes": (0, 8), "dtypes": ("fp8",), "model": "glm-5",
        "workload": "reference", "tracer": "torch", "nsys": "/opt/nsys", "device": "cpu",
        "warmup": 1, "iterations": 2, "seed": 3, "timeout": 4.5, "chunk_cases": 5,
        "output": "out", "name": "n", "gpus": "all", "shard": "0/2",
        "settle": 0.02, "budget": 3.0, "power": 2.0,
        "options": {"cuda_graph": True, "gemm_type": "fp8_block"},
    }  # fmt: skip
    assert set(given) == {f.name for f in fields(RunConfig)}
    lines = [
        f"{k} = {list(v) if isinstance(v, tuple) else repr(v)}"
        for k, v in given.items()
        if k != "options"
    ]
    lines.append('[options]\ncuda_graph = true\ngemm_type = "fp8_block"')
    assert config.load(toml(tmp_path, "\n".join(lines)), {}) == RunConfig(**given)


@pytest.mark.parametrize(
    ("text", "what", "cure"),
    [
        ("batch_size = [1]", "unknown key 'batch_size'", "'batch_sizes'"),
        ("batch_sizes = 4", "batch_sizes = 4", "a list of whole numbers"),
        ("batch_sizes = [1, true]", "batch_sizes", "a list of whole numbers"),
        ("iterations = 1.5", "iterations = 1.5", "a whole number"),
        ("timeout = 'long'", "timeout = 'long'", "a number"),
        ("mode = 3", "mode = 3", "a string"),
        ("options = 3", "options = 3", "a table"),
        ("mode = [", "cannot read", "valid TOML"),
        ("[table]\nx = 1", "unknown key 'table'", "one of"),
    ],
)
def test_a_bad_file_is_refused_in_two_lines(tmp_path, text, what, cure):
    with pytest.raises(InputError) as told:
        config.load(toml(tmp_path, text), {})
    assert what in told.value.what
    assert cure in told.value.cure
    assert "\n" not in told.value.cure


def test_options_of_a_flag_join_those_of_the_file(tmp_path):
    path = toml(tmp_path, "[options]\ncuda_graph = true\nmax_seq_len = 4")
    got = config.load(path, {"options": {"max_seq_len": 8}})
    assert got.options == {"cuda_graph": True, "max_seq_len": 8}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.toml"):
        config.load(str(tmp_path / "nowhere.toml"), {})


@pytest.mark.parametrize(
    "flags",
    [
        {"mode": "decode"}, {"preset": "huge"}, {"tracer": "perf"}, {"device": "tpu"},
        {"dtypes": ("int4",)}, {"warmup": -1}, {"iterations": 0}, {"timeout": 0},
        {"timeout": float("nan")}, {"settle": 0.0}, {"budget": -1.0},
        {"chunk_cases": 0}, {"power": -0.5}, {"power": float("nan")}, {"seed": -1},
        {"name": "../up"}, {"name": ""}, {"name": ".hidden"},
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_usage_errors(flags):
    with pytest.raises(UsageError):
        config.load(None, flags)


def test_the_machine_settles_the_preset():
    assert RunConfig().settled(cuda=True).preset == "standard"
    assert RunConfig().settled(cuda=False).preset == "smoke"
    assert RunConfig(preset="smoke", warmup=0).settled(cuda=True).warmup == 0


def test_plans_follow_the_axes():
    model = load_model("deepseek-v3.2")
    standard = RunConfig(preset="standard").settled(cuda=False)
    assert len(standard.plan(model).cases) == 291
    own = RunConfig(
        mode="context", batch_sizes=(1, 2), seq_lens=(8,), num_heads=(128, 16), prefixes=(0, 32)
    )
    cases = own.settled(cuda=False).plan(model).cases
    assert len(cases) == 8
    assert {c.prefix for c in cases} == {0, 32}
    with pytest.raises(UsageError, match="no case"):
        RunConfig(batch_sizes=()).settled(cuda=False).plan(model)
    with pytest.raises(UsageError, match="at least 1"):
        RunConfig(batch_sizes=(0,)).settled(cuda=False).plan(model)


def test_prefixes_belong_to_context_only():
    cases = RunConfig(prefixes=(64,)).settled(cuda=False).plan(load_model("deepseek-v3.2")).cases
    assert {c.prefix for c in cases if c.phase == "generation"} == {0}
    assert {c.prefix for c in cases if c.phase == "context"} == {64}


def test_shards_are_the_whole_plan_in_equal_parts():
    model = load_model("deepseek-v3.2")
    whole = RunConfig(preset="standard").settled(cuda=False).plan(model)
    parts = [
        RunConfig(preset="standard", shard=f"{n}/8").settled(cuda=False).plan(model)
        for n in range(8)
    ]
    assert sorted(c for part in parts for c in part.cases) == sorted(whole.cases)
    counts = [len(part.cases) for part in parts]
    assert max(counts) <= min(counts) + 1


@pytest.mark.parametrize("shard", ["8/8", "1", "a/b", "-1/2", "1/0", "0/2/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UsageError, match="no shard"):
        RunConfig(shard=shard).settled(cuda=False).plan(load_model("deepseek-v3.2"))
