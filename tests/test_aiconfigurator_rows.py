"""Sessions to rows, rows to files: what readers downstream are strict about."""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import results_factory as factory

from dsa_profiler.columns import MODULE_HEADER, PERF_HEADER
from dsa_profiler.errors import DsaError, InputError, UsageError
from dsa_profiler.export import aic_package, module_rows, module_tables, perf_csv
from dsa_profiler.model import Case
from dsa_profiler.session import GpuState

CASES = (
    Case("context", 1, 1024, 16),
    Case("context", 2, 512, 16, prefix=128),
    Case("generation", 4, 2048, 16),
)


def rows(cases: tuple[Case, ...] = CASES, **changes: object) -> dict[str, pd.DataFrame]:
    session = factory.session(cases, **changes)
    return module_rows.module_rows(factory.results(cases), session, "fp8_block")


def test_generation_is_one_token_after_step_cached_ones() -> None:
    row = rows()["generation"].iloc[0]
    assert (row["isl"], row["step"], row["batch_size"]) == (1, 2048, 4)


def test_context_is_isl_new_tokens_after_step_cached_ones() -> None:
    frame = rows()["context"]
    assert frame[["isl", "step"]].to_numpy().tolist() == [[1024, 0], [512, 128]]


def test_a_row_is_the_median_span_in_ms_of_the_local_heads() -> None:
    results = factory.results(CASES)
    row = rows()["generation"].iloc[0]
    assert row["latency"] == results.cases[2].span_ns.median / 1e6
    assert (row["num_heads"], row["tp_size"], row["op_name"]) == (16, 1, "dsa_generation_module")


def test_columns_are_the_sixteen_of_the_tables() -> None:
    assert tuple(rows()["context"].columns) == MODULE_HEADER
    assert len(MODULE_HEADER) == 16


def test_host_timed_cases_are_refused() -> None:
    session = factory.session(CASES)
    with pytest.raises(InputError, match="not timed on a GPU") as refused:
        module_rows.module_rows(factory.results(CASES, timing="host"), session, "bfloat16")
    assert refused.value.exit_code == 4


def test_float32_cases_are_refused() -> None:
    cases = (Case("context", 1, 16, 16, "float32"),)
    with pytest.raises(InputError, match="not timed on a GPU"):
        rows(cases)


def test_a_session_without_cases_is_refused() -> None:
    with pytest.raises(InputError, match="no measured case"):
        rows(())


def test_unknown_precision_of_the_projections_is_asked_for() -> None:
    session = factory.session(CASES, workload="trtllm")
    with pytest.raises(UsageError, match="precision of its projections"):
        module_rows.module_rows(factory.results(CASES), session)


@pytest.mark.parametrize("place", ["settings", "environment"])
def test_precision_is_taken_from_the_session(place: str) -> None:
    session = factory.session(CASES, workload="trtllm", **{place: {"gemm_type": "fp8_block"}})
    assert module_rows.origin(session).gemm_type == "fp8_block"


def test_a_missing_head_count_is_named() -> None:
    with pytest.raises(InputError, match=r"no context rows for 8, 32 local heads, only for 16"):
        module_rows.require_heads(rows(), (8, 16, 32))


def test_power_is_a_column_only_where_every_case_has_one() -> None:
    results, session = factory.results(CASES), factory.session(CASES)
    watts = {CASES[0]: 500.0, CASES[2]: 600.0}
    cases = tuple(
        replace(c, gpu=GpuState((1, 1.0, 1), 1, 40, power_w=watts.get(c.case)))
        for c in results.cases
    )
    tables = module_rows.module_rows(replace(results, cases=cases), session, "bfloat16")
    assert "power" not in tables["context"].columns
    assert tables["generation"]["power"].tolist() == [600.0]


def test_rows_come_in_one_order_whatever_order_the_cases_had() -> None:
    turned = CASES[::-1]
    one = module_rows.module_rows(factory.results(CASES), factory.session(CASES), "bfloat16")
    two = module_rows.module_rows(factory.results(turned), factory.session(turned), "bfloat16")
    pd.testing.assert_frame_equal(one["context"], two["context"])


def test_a_kernel_never_looks_like_a_module() -> None:
    frame = module_rows.kernel_rows(factory.results(CASES), factory.session(CASES), "bfloat16")
    assert "latency" not in frame.columns
    assert {"kernel", "median_ms", "num_heads", "isl", "step"} <= set(frame.columns)


def test_parquet_has_the_types_codec_and_no_null(tmp_path: Path) -> None:
    path = tmp_path / "dsa_context_module_perf.parquet"
    module_tables.write_parquet(rows()["context"], path)
    schema = pq.read_schema(path)
    kinds = {f.name: f.type for f in schema}
    integers = {"num_heads", "batch_size", "isl", "tp_size", "step"}
    assert {n for n, k in kinds.items() if k == pa.int64()} == integers
    assert {n for n, k in kinds.items() if k == pa.float64()} == {"latency"}
    group = pq.read_metadata(path).row_group(0)
    assert {group.column(i).compression for i in range(16)} == {"ZSTD"}
    assert pq.read_metadata(path).num_row_groups == 1


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        module_tables.write_parquet(rows()["context"], tmp_path / name)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("suffix", [".parquet", ".txt"])
def test_what_is_written_is_what_is_read(tmp_path: Path, suffix: str) -> None:
    frame, path = rows()["generation"], tmp_path / f"dsa_generation_module_perf{suffix}"
    writer = module_tables.write_csv if suffix == ".txt" else module_tables.write_parquet
    writer(frame, path)
    table = module_tables.read(path)
    assert table.phase == "generation"
    assert table.half_rows == (len(frame) if suffix == ".txt" else 0)
    pd.testing.assert_frame_equal(table.frame, frame, check_dtype=False)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("latency", [1.0, None]),
        ("latency", ["1.0", 2.0]),
        ("latency", [0.0, 1.0]),
        ("num_heads", [16.0, 32.5]),
        ("gemm_type", ["bfloat16", 3]),
    ],
)
def test_mixed_columns_are_refused_and_nothing_is_written(
    tmp_path: Path, column: str, values: list[object]
) -> None:
    frame = rows()["context"].assign(**{column: pd.Series(values)})
    for writer in (module_tables.write_csv, module_tables.write_parquet):
        with pytest.raises(InputError, match=column):
            writer(frame, tmp_path / "table")
    assert list(tmp_path.iterdir()) == []


def test_the_seeds_csv_reads_as_the_same_rows(tmp_path: Path) -> None:
    cases = tuple(replace(c, prefix=0) for c in CASES)
    session = factory.session(cases)
    perf_csv.write(factory.results(cases), session, tmp_path)
    for phase, frame in module_rows.module_rows(factory.results(cases), session).items():
        table = module_tables.read(tmp_path / f"dsa_{phase}_bf16_perf.txt")
        assert set(PERF_HEADER) - {"dsa_dtype"} <= set(table.frame.columns)
        both = frame.merge(table.frame, on=["num_heads", "batch_size", "isl", "step"])
        assert len(both) == len(frame)
        assert both["latency_x"].to_numpy() == pytest.approx(both["latency_y"].to_numpy())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.parquet", None),
        ("broken.parquet", b"no parquet"),
        ("other.csv", b"a,b\n1,2\n"),
        ("empty.txt", b""),
        ("binary.txt", b"\xff\xfe\x00"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DsaError, match=name.split(".")[0]) as refused:
        module_tables.read(tmp_path / name)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    ("column", "value"), [("isl", "many"), ("num_heads", "16.5"), ("step", "1e3x")]
)
def test_a_table_of_mixed_values_is_named_with_the_first(
    tmp_path: Path, column: str, value: str
) -> None:
    path = tmp_path / "dsa_context_module_perf.txt"
    frame = rows()["context"].astype({column: object})
    frame.loc[1, column] = value
    frame.to_csv(path, index=False)
    with pytest.raises(InputError, match=f"column {column} holds 1 values .*{value}"):
        module_tables.read(path)


def test_sizes_that_are_stored_as_text_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "dsa_context_module_perf.parquet"
    frame = rows()["context"]
    pq.write_table(pa.Table.from_pandas(frame.astype({"isl": str}), preserve_index=False), path)
    table = module_tables.read(path)
    assert table.types["isl"] == "string"
    assert table.frame["isl"].tolist() == frame["isl"].tolist()


@pytest.mark.parametrize("seed", range(30))
def test_damaged_tables_are_read_or_named(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "dsa_context_module_perf.parquet"
    module_tables.write_parquet(rows()["context"], path)
    data = bytearray(path.read_bytes())
    rng = random.Random(seed)
    if seed % 3 == 0:
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randrange(1, 20)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(bytes(data))
    table = None
    with contextlib.suppress(InputError):  # named; anything else would be a bug
        table = module_tables.read(path)
    assert table is None or len(table.frame.columns) > 0


def test_versions_sort_as_releases_do() -> None:
    order = ["1.2.0rc5", "1.3.0rc9", "1.3.0rc20", "1.3.0rc20+dsa", "1.3.0rc20.post1", "1.3.0"]
    assert sorted(set(order), key=aic_package.version_key) == order
