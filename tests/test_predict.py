"""`predict` and `explain`, from the command line: what they fill, mark, refuse and say."""

import io
import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import results_factory
from cost_factory import H200, V32, rows, staged

from dsa_profiler.analysis import explain
from dsa_profiler.cli import main
from dsa_profiler.cli.source import Source
from dsa_profiler.columns import MODULE_HEADER, PREDICTED
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case
from dsa_profiler.results import CaseResult, Coverage, Results, Spread, StageStat, TraceSummary


@pytest.fixture
def table(tmp_path):
    """A generation table of two head counts with one spike, as aiconfigurator ships them."""
    found = rows(heads=(16, 128))
    spike = (found.at.seq == 2048) & (found.at.batch == 64) & (found.at.heads == 128)
    frame = pd.DataFrame(
        {
            "framework": "TRTLLM", "version": "1.3.0", "device": "NVIDIA H200",
            "op_name": "dsa_generation_module", "kernel_source": "default", "model": "m",
            "architecture": "DeepseekV32ForCausalLM", "mla_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16", "gemm_type": "bfloat16",
            "num_heads": found.at.heads.astype(int), "batch_size": found.at.batch.astype(int),
            "isl": 1, "tp_size": 1, "step": found.at.seq.astype(int),
            "latency": np.where(spike, 1.5, 1.0) * found.ns / 1e6,
        }
    )[list(MODULE_HEADER)]  # fmt: skip
    path = tmp_path / "dsa_generation_module_perf.parquet"
    frame.to_parquet(path, index=False)
    return path


def filled(capsys, *argv):
    assert main(["predict", *map(str, argv)]) == 0
    out = capsys.readouterr()
    return pd.read_csv(io.StringIO(out.out)), out.err


def test_it_fills_head_counts_and_lengths_and_says_why(table, capsys):
    found, err = filled(
        capsys, table, "--num-heads", "64,128", "--batch-sizes", "64", "--seq-lens", "4096,6000"
    )
    assert list(found.num_heads) == [64, 64, 128]  # 64 x 4096 at 128 heads is measured
    assert (found.reason == "between").all()
    assert (found.kernel_source == f"{PREDICTED}_between").all()
    assert ((found.low_ms < found.latency) & (found.latency < found.high_ms)).all()
    assert "left out, a spike: generation-b64-s2048-h128-bfloat16" in err


def test_nothing_beyond_the_grid_unless_asked_for(table, capsys):
    argv = ["--num-heads", "128", "--batch-sizes", "64", "--seq-lens", "300,262144"]
    assert list(filled(capsys, table, *argv)[0].seq_len) == [300]
    found, _ = filled(capsys, table, *argv, "--beyond")
    assert list(found.reason) == ["between", "beyond"]
    assert list(found.steps) == [0, 1]


def test_without_axes_the_grid_is_filled_halfway_between_its_lines(table, capsys):
    found, _ = filled(capsys, table)
    assert {3, 6, 11, 23} <= set(found.batch_size)
    assert {724, 1448, 92682} <= set(found.seq_len)
    assert (found.reason == "between").all()


def test_the_same_table_gives_the_same_bytes(table, capsys):
    first, _ = filled(capsys, table, "--num-heads", "64")
    shuffled = pd.read_parquet(table).sample(frac=1, random_state=0)
    shuffled.to_parquet(table, index=False)
    assert filled(capsys, table, "--num-heads", "64")[0].equals(first)


def test_json_is_one_document_with_rows_and_spikes(table, capsys):
    assert main(["predict", str(table), "--num-heads", "64", "--batch-sizes", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["spikes"] == ["generation-b64-s2048-h128-bfloat16"]
    assert {r["batch_size"] for r in document["rows"]} == {2}


def test_predicted_rows_stay_out_of_parquet_unless_asked_for(table, tmp_path, capsys):
    out = tmp_path / "filled.parquet"
    argv = ["predict", str(table), "--num-heads", "64", "--batch-sizes", "2", "--output", str(out)]
    assert main(argv) == 2
    assert "--into-aiconfigurator" in capsys.readouterr().err
    assert not out.exists()
    assert main([*argv, "--into-aiconfigurator"]) == 0
    whole, measured = pd.read_parquet(out), pd.read_parquet(table)
    assert tuple(whole.columns) == MODULE_HEADER
    new = whole[whole.kernel_source.str.startswith(PREDICTED)]
    assert len(whole) == len(measured) + len(new)
    assert set(new.num_heads) == {64}
    assert (new.isl == 1).all()


def test_a_filled_table_predicts_what_the_measured_one_does(table, tmp_path, capsys):
    out = tmp_path / "dsa_generation_module_perf_filled.parquet"
    asked = ["--num-heads", "64", "--batch-sizes", "2,8"]
    argv = ["predict", str(table), *asked, "--output", str(out), "--into-aiconfigurator"]
    assert main(argv) == 0
    capsys.readouterr()
    assert filled(capsys, out, *asked)[0].equals(filled(capsys, table, *asked)[0])


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        ({"device": lambda f: np.where(f.index % 2, "NVIDIA H200", "NVIDIA H100")}, 4, "devices"),
        ({"latency": lambda f: np.where(f.index == 3, np.nan, f.latency)}, 4, "latency of nan"),
        ({"latency": lambda f: np.where(f.index == 3, -1.0, f.latency)}, 4, "latency of -1"),
        ({"batch_size": lambda f: 4}, 4, "one batch size"),
        ({"device": lambda f: "Tesla T4"}, 2, "no rates are known for Tesla T4"),
        ({"gemm_type": lambda f: np.where(f.index % 2, "fp8_block", "bfloat16")}, 2, "2 tables"),
    ],
)
def test_bad_tables_are_named_and_give_no_rows(table, capsys, change, code, what):
    frame = pd.read_parquet(table)
    frame.assign(**{k: f(frame) for k, f in change.items()}).to_parquet(table, index=False)
    assert main(["predict", str(table), "--num-heads", "64"]) == code
    out = capsys.readouterr()
    assert what in out.err
    assert len(out.err.strip().splitlines()) == 2
    assert out.out == ""


def case(seq, stages, gap=0.0, timing="gpu"):
    total = sum(stages.values())
    parts = tuple(StageStat(s, "other", 1.0, ns, ns / total) for s, ns in stages.items())
    span = Spread(*[total + gap] * 5)
    where = Case("generation", 64, seq)
    return CaseResult(where, 5, span, total, 0.0, gap, parts, (), timing=timing)


SHORT = {"o_proj": 60e3, "sparse_attn": 200e3}
LINE = [
    case(1024, SHORT),
    case(2048, {**SHORT, "mqa_logits": 10e3, "topk": 180e3}),
    case(4096, {**SHORT, "mqa_logits": 20e3, "topk": 20e3}, gap=60e3),
    case(8192, {**SHORT, "mqa_logits": 45e3, "topk": 30e3}),
]


def test_a_spike_is_traced_to_its_stages():
    found = explain.explain(LINE[1].case, LINE, V32, H200)
    assert [e.stage for e in found.spike] == ["topk"]
    assert found.spike[0].excess_ns == 180e3 - 20e3 / 2
    assert found.spike_factor == 450e3 / 360e3
    assert any("topk 0.17 ms" in s for s in found.sentences())


def test_a_case_is_laid_out_against_its_floor():
    found = explain.explain(LINE[2].case, LINE, V32, H200)
    assert found.spike_factor is None
    assert sum(s.measured_ns for s in found.stages) == 300e3
    by_stage = {s.stage: s for s in found.stages}
    attention = by_stage["sparse_attn"]
    assert attention.floor_ns == found.floor.stage_ns("sparse_attn")
    assert attention.over_ns == attention.measured_ns - attention.floor_ns
    assert found.stages[0].stage == "sparse_attn"
    assert any("nothing runs for 0.06 ms (17 %)" in s for s in found.sentences())


def test_the_next_doubling_is_measured_where_it_was_and_else_scaled_by_floors():
    measured = explain.explain(LINE[2].case, LINE, V32, H200).growth
    assert (measured[0].stage, measured[0].added_ns, measured[0].source) == (
        "mqa_logits", 25e3, "measured",
    )  # fmt: skip
    scaled = explain.explain(LINE[3].case, LINE, V32, H200).growth
    assert scaled[0].stage == "mqa_logits"
    assert scaled[0].source == "floor"
    assert scaled[0].added_ns == pytest.approx(45e3, rel=0.1)


def test_what_cannot_be_explained_is_said():
    with pytest.raises(InputError, match="was not measured"):
        explain.explain(Case("generation", 64, 100), LINE, V32, H200)
    host = [replace(LINE[0], timing="host")]
    with pytest.raises(InputError, match="timed on the host"):
        explain.explain(host[0].case, host, V32, H200)


def test_explain_prints_the_sentences_and_the_stages(monkeypatch, capsys, tmp_path):
    @contextmanager
    def opened(path):
        summary = TraceSummary("x", "1", ("NVIDIA H200",), 1, 1, 1, 1, 1)
        yield Source(path, path, Results(summary, Coverage(1, 1, 0, ()), (), (), tuple(LINE)), None)

    monkeypatch.setattr("dsa_profiler.cli.source.opened", opened)
    argv = ["explain", str(tmp_path), "generation-b64-s2048-h128-bfloat16"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "It is a spike, 1.25 times its longer neighbour" in out
    assert "sparse_attn               0.2000" in out
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spike_factor"] == 1.25


def test_explain_refuses_what_is_not_there(tmp_path, capsys):
    assert main(["explain", str(tmp_path / "none"), "generation-b64-s2048-h128-bfloat16"]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert main(["explain", str(tmp_path), "generation-64"]) == 2


def test_the_explanation_is_json_with_its_sentences():
    document = explain.explain(LINE[1].case, LINE, V32, H200).as_json()
    assert json.loads(json.dumps(document))["spike"][0]["stage"] == "topk"
    assert document["sentences"][0].startswith("generation-b64-s2048-h128-bfloat16 takes 0.45 ms")


def test_a_session_is_filled_from_its_stages(monkeypatch, capsys, tmp_path):
    found = results_factory.session(())

    @contextmanager
    def opened(path):
        yield Source(path, path, staged(), found)

    monkeypatch.setattr("dsa_profiler.cli.source.opened", opened)
    (tmp_path / "session.json").write_text("{}")
    argv = ["predict", str(tmp_path), "--num-heads", "96", "--batch-sizes", "67"]
    assert main([*argv, "--seq-lens", "300,3000", "--json"]) == 0
    short, long = json.loads(capsys.readouterr().out)["rows"]
    # 67 x 2 tiles are two waves of 150 us; o_proj 20 us and 0.5 ns a token and head; span 1.1 x sum
    assert short["latency"] == pytest.approx(1.1 * (0.300 + 0.0232), rel=0.05)
    scoring = 5e-3 + 0.03e-6 * 67 * 3000 + 8e-3 + 10e-6 * 67
    assert long["latency"] - short["latency"] == pytest.approx(1.1 * scoring, rel=0.3)
    assert main([*argv, "--output", str(tmp_path / "x.parquet"), "--into-aiconfigurator"]) == 2
    assert "export the session" in capsys.readouterr().err
