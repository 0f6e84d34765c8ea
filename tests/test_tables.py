"""Tables of module latencies as lines on a session's page."""

from __future__ import annotations

import pandas as pd

from dsa_profiler.cli import tables
from dsa_profiler.cli.tables import Table


def frame(**columns: object) -> pd.DataFrame:
    whole = {
        "architecture": "DeepseekV32ForCausalLM", "kernel_source": "default",
        "gemm_type": "bfloat16", "kv_cache_dtype": "bfloat16", "num_heads": 128, "batch_size": 2,
        "isl": 1, "step": 4095, "latency": 0.5,
    }  # fmt: skip
    return pd.DataFrame([{**whole, **columns}])


def test_a_row_is_the_latency_of_the_case_that_it_is() -> None:
    [line] = tables.lines(Table("trtllm/x.parquet", "generation", frame()), None)
    assert (line.name, line.kind) == ("trtllm, bfloat16", "shipped")
    assert dict(line.ns) == {"generation-b2-s4095-h128-bfloat16": 5e5}
    [line] = tables.lines(Table("x/y.parquet", "context", frame(isl=64, step=16)), None)
    assert list(line.ns) == ["context-b2-s64-p16-h128-bfloat16"]


def test_gemm_types_and_predictions_are_lines_of_their_own() -> None:
    rows = pd.concat(
        [
            frame(),
            frame(gemm_type="fp8_block"),
            frame(kernel_source="dsa_profiler_predicted_inside"),
        ]
    )
    found = tables.lines(Table("t/x.parquet", "generation", rows), "DeepseekV32ForCausalLM")
    assert sorted((x.kind, x.name) for x in found) == [
        ("prediction", "predicted, bfloat16"),
        ("shipped", "t, bfloat16"),
        ("shipped", "t, fp8_block"),
    ]
    assert tables.lines(Table("t/x.parquet", "generation", rows), "GlmMoeDsaForCausalLM") == []
