"""DSA module tables on disk: parquet as aiconfigurator 0.10 and later reads it, CSV as up to 0.8.

The readers downstream are strict and mostly silent: an int32, a float32, a NULL or a codec that is
compiled out refuses the whole file. `write` can only produce what they take; `read` takes what
exists and reports how it is stored, so that `lint` can say what a reader would make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dsa_profiler.columns import MODULE_HEADER
from dsa_profiler.errors import InputError
from dsa_profiler.session import replacing

INTEGERS = frozenset(("num_heads", "batch_size", "isl", "tp_size", "step"))
FLOATS = frozenset(("latency", "power", "calls_per_iteration", "median_ms", "p10_ms", "p90_ms"))
POSITIVE = frozenset(("latency", "power"))
DTYPE_COLUMNS = ("mla_dtype", "kv_cache_dtype", "gemm_type")
CSV_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table's rows and its storage: physical type and codec by column ("csv" has neither)."""

    path: Path
    frame: pd.DataFrame
    types: Mapping[str, str]
    codecs: Mapping[str, str]
    nulls: Mapping[str, int]
    half_rows: int = 0
    """Rows that call half precision `float16`; in `frame` they are `bfloat16`."""

    @property
    def phase(self) -> str:
        return "generation" if "generation" in self.path.name else "context"


def read(path: Path) -> Table:
    """Any DSA table: parquet, CSV of the old releases, or the CSV of the seed's columns.

    Raises `InputError` for what is no such table. `float16`, the name of half precision up to 0.8,
    is read as `bfloat16`.
    """
    try:
        table = _read_csv(path) if path.suffix in CSV_SUFFIXES else _read_parquet(path)
    except FileNotFoundError:
        raise InputError(
            "table-not-found", f"no such table: {path}", "give a table's path"
        ) from None
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(
            "table-unreadable",
            f"cannot read {path}: {_short(error)}",
            "give a parquet or CSV table",
        ) from None
    missing = [c for c in ("num_heads", "batch_size", "isl", "step", "latency")
               if c not in table.frame.columns]  # fmt: skip
    if missing:
        raise InputError(
            "table-columns",
            f"{path} is no DSA table: no column {', '.join(missing)}",
            "give a dsa_context_module_perf or dsa_generation_module_perf table",
        )
    return replace(table, frame=_numeric(table.frame, path))


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Replace `path` by the rows: int64, float64 and plain strings, zstd, no NULL, one row group.

    Raises `InputError` for a column that holds anything else; nothing is written then.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(c, _arrow_type(pa, c)) for c in frame.columns])
    columns = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        _refuse_mixed(frame[name], name)
        columns.append(pa.array(frame[name].to_numpy(), type=kind))
    with replacing(path) as part:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=schema),
            part,
            compression="zstd",
            row_group_size=max(1, len(frame)),
        )


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Replace `path` by the rows in the CSV that releases up to 0.8 read: half is `float16`."""
    renamed = frame.copy()
    for column in DTYPE_COLUMNS:
        renamed[column] = renamed[column].replace("bfloat16", "float16")
    for column in renamed.columns:
        _refuse_mixed(renamed[column], column)
    with replacing(path) as part:
        renamed.to_csv(part, index=False, lineterminator="\n")


def _refuse_mixed(column: pd.Series[Any], name: str) -> None:
    kind = column.dtype.kind
    fine = kind in ("iu" if name in INTEGERS else "f" if name in FLOATS else "OUT")
    if fine and kind == "O":
        fine = bool(column.map(lambda value: isinstance(value, str)).all())
    if not fine or column.isna().any():
        raise InputError(
            "table-mixed",
            f"column {name} holds NULL or mixed values (dtype {column.dtype})",
            "every reader downstream refuses such a file whole: mend or drop those rows",
        )
    if name in POSITIVE and not (column > 0).all():
        raise InputError(
            "table-mixed",
            f"column {name} holds {int((~(column > 0)).sum())} values that are not positive",
            "a latency is above zero: mend or drop those rows",
        )


def _arrow_type(pa: Any, name: str) -> Any:
    return pa.int64() if name in INTEGERS else pa.float64() if name in FLOATS else pa.string()


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        data = file.read()
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    group = file.metadata.row_group(0) if file.metadata.num_row_groups else None
    codecs = (
        {group.column(i).path_in_schema: group.column(i).compression.lower()
         for i in range(group.num_columns)} if group else {}
    )  # fmt: skip
    types = {f.name: _type_name(f.type) for f in data.schema}
    nulls = {n: data[n].null_count for n in data.column_names}
    frame = data.to_pandas()
    return Table(path, _tidy(frame), types, codecs, nulls, _halves(frame))


def _numeric(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Sizes as whole numbers, however they are stored; a latency that is no number becomes NaN."""
    out = frame.copy()
    for name in ("num_heads", "batch_size", "isl", "step"):
        numbers = pd.to_numeric(out[name], errors="coerce")
        wrong = (numbers.isna() & out[name].notna()) | (numbers % 1 != 0) & numbers.notna()
        if wrong.any():
            raise InputError(
                "table-mixed",
                f"{path}: column {name} holds {int(wrong.sum())} values that are no whole number "
                f"(first: {str(out.loc[wrong, name].iloc[0])[:40]!r})",
                "every reader downstream refuses such a file whole: mend or drop those rows",
            )
        out[name] = numbers if numbers.isna().any() else numbers.astype("int64")
    out["latency"] = pd.to_numeric(out["latency"], errors="coerce")
    return out


def _type_name(kind: Any) -> str:
    text = str(kind)
    if text.startswith("dictionary<values=string") or text == "large_string":
        return "string"
    return text


def _read_csv(path: Path) -> Table:
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if "dsa_dtype" in frame.columns:
        frame = _from_seed(frame)
    nulls = {c: int(frame[c].isna().sum()) for c in frame.columns}
    types = {c: str(frame[c].dtype) for c in frame.columns}
    return Table(path, _tidy(frame), types, {}, nulls, _halves(frame))


def _from_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """The seed's columns in upstream's: generation swaps isl (cached tokens) and step (1)."""
    out = frame.rename(columns={"dsa_dtype": "mla_dtype"})
    out["mla_dtype"] = out["mla_dtype"].replace("bf16", "bfloat16")
    out["kv_cache_dtype"] = out["mla_dtype"]
    generation = out["op_name"].str.contains("generation")
    cached = out["isl"].where(generation, out["step"])
    out["isl"] = out["isl"].mask(generation, 1)
    out["step"] = cached
    return out


def _halves(frame: pd.DataFrame) -> int:
    columns = [c for c in DTYPE_COLUMNS if c in frame.columns]
    return int((frame[columns] == "float16").any(axis=1).sum())


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    for column in DTYPE_COLUMNS:
        if column in frame.columns:
            frame[column] = frame[column].astype(object).replace("float16", "bfloat16")
    front = [c for c in MODULE_HEADER if c in frame.columns]
    return frame[[*front, *(c for c in frame.columns if c not in front)]]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
