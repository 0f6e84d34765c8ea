"""Tables of module latencies as an input: files, roots and sessions, and how two of them agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from dsa_profiler import session
from dsa_profiler.columns import PREDICTED
from dsa_profiler.errors import InputError
from dsa_profiler.model import Case, Phase

if TYPE_CHECKING:
    import pandas as pd

    from dsa_profiler.analysis.agreement import Agreement
    from dsa_profiler.analysis.lint import Storage
    from dsa_profiler.report.charts import Line
    from dsa_profiler.results import CaseResult

SUFFIXES = (".parquet", ".txt")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """One table to look through; `results` are the cases behind it, of a session."""

    name: str
    phase: str
    frame: pd.DataFrame
    storage: Storage | None = None
    results: tuple[CaseResult, ...] = ()


def read(path: Path) -> Iterator[Table]:
    """The tables at `path`: a file, a folder of files, or a session's rows as they would be fed."""
    from dsa_profiler.analysis.lint import Storage
    from dsa_profiler.export import module_rows, module_tables

    if (path / session.MANIFEST).is_file():
        from dsa_profiler import pipeline

        results = pipeline.analyze(path)
        rows = module_rows.lint_rows(results, session.load(path))
        if not rows:
            raise InputError("cases-none", f"{path} has no measured case", "run the sweep first")
        for phase, frame in rows.items():
            yield Table(path.name, phase, frame, None, results.cases)
        return
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("dsa_*_perf.*") if p.suffix in SUFFIXES)
        if not files:
            raise InputError(
                "table-not-found", f"no DSA table in {path}", "give a table, a root or a session"
            )
    for file in files:
        table = module_tables.read(file)
        storage = Storage(table.types, table.codecs, table.nulls, table.half_rows)
        yield Table(str(file), table.phase, table.frame, storage)


def lines(table: Table, architecture: str | None) -> list[Line]:
    """The rows as lines beside measured latencies: one a GEMM type, predicted rows apart."""
    from dsa_profiler.report.charts import Line

    frame, phase = table.frame, cast(Phase, table.phase)
    if architecture is not None:
        frame = frame[frame["architecture"] == architecture]
    predicted = frame["kernel_source"].astype(str).str.startswith(PREDICTED)
    found = []
    for (gemm, guess), rows in frame.groupby([frame["gemm_type"], predicted], sort=True):
        ns = {}
        for batch, isl, step, heads, dtype, ms in zip(
            *(rows[c] for c in ("batch_size", "isl", "step", "num_heads", "kv_cache_dtype")),
            rows["latency"],
            strict=True,
        ):
            seq, prefix = (step, 0) if phase == "generation" else (isl, step)
            case = Case(phase, int(batch), int(seq), int(heads), dtype, int(prefix))
            ns[case.slug] = float(ms) * 1e6
        kind: Literal["prediction", "shipped"] = "prediction" if guess else "shipped"
        name = f"{'predicted' if guess else Path(table.name).parent.name or 'table'}, {gemm}"
        found.append(Line(name, kind, ns))
    return found


def told(agrees: Agreement, ours: str, theirs: str) -> list[str]:
    """An agreement in lines; `ours` and `theirs` name the two sides."""
    lines = [
        f"{agrees.shared} keys in both, {agrees.only_ours} {ours} alone, "
        f"{agrees.only_theirs} {theirs} alone"
    ]
    if not agrees.shared:
        return lines
    low, p5, _, middle, _, p95, high = agrees.quantiles
    heads = ", ".join(f"{h}: {r:.3f} ({n})" for h, (r, n) in agrees.by_heads.items())
    return [
        *lines,
        f"latency {ours} / {theirs}: median {middle:.3f}, p5 {p5:.3f}, p95 {p95:.3f}, "
        f"{low:.3f} to {high:.3f}; median difference {agrees.off:.1%}",
        f"median by local heads: {heads}",
        *(f"  {k}: {a:.4g} ms {ours}, {b:.4g} ms {theirs}" for k, a, b in agrees.worst),
    ]
