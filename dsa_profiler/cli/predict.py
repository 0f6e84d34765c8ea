"""Example:  dsa-profiler predict dsa_generation_module_perf.parquet --num-heads 96 --output 96.csv

Fill a table of DSA latencies (parquet or CSV, or the rows of a session) between and beyond what was
measured: denser batch sizes and lengths, head counts that nobody ran. Each filled row carries an
interval that is meant to hold nine in ten measurements, and its reason: between measured shapes, or
beyond them and by how many doublings. Filled rows are marked in kernel_source
(dsa_profiler_predicted_...); they go into parquet, which aiconfigurator reads, only with
--into-aiconfigurator. Without axes the grid is filled halfway between its lines.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_profiler.cli.model import numbers, numbers_or_zero
from dsa_profiler.errors import Exit, InputError, UsageError
from dsa_profiler.model import FAMILIES, Phase, load_model

if TYPE_CHECKING:
    import pandas as pd

    from dsa_profiler.analysis.costmodel import Model
    from dsa_profiler.analysis.measured import Rows
    from dsa_profiler.analysis.roofline import Points

PRESET_OF = {"DEEPSEEKV32": "deepseek-v3.2", "GLM5": "glm-5"}
COLUMNS = (
    "phase", "batch_size", "seq_len", "prefix", "num_heads", "kv_cache_dtype", "gemm_type",
    "latency", "low_ms", "high_ms", "reason", "steps", "kernel_source",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", metavar="TABLE|SESSION", type=Path)
    parser.add_argument("--system", help="the GPU, where the rows do not name one we know")
    parser.add_argument("--model", help="preset or config.json; default: what the rows say")
    parser.add_argument("--gemm", help="one precision of the weights, where a table has several")
    parser.add_argument("--kv-dtype", help="one precision of the cache, where a table has several")
    parser.add_argument("--mode", choices=("context", "generation"), help="of a session's rows")
    parser.add_argument("--batch-sizes", type=numbers, metavar="N,N")
    parser.add_argument("--seq-lens", type=numbers, metavar="N,N")
    parser.add_argument("--num-heads", type=numbers, metavar="N,N")
    parser.add_argument("--prefixes", type=numbers_or_zero, metavar="N,N")
    parser.add_argument("--beyond", action="store_true", help="also fill past the measured grid")
    parser.add_argument("--output", type=Path, help="a .csv, or a .parquet for aiconfigurator")
    parser.add_argument("--into-aiconfigurator", action="store_true", help="filled rows too")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    from dsa_profiler.analysis import costmodel, measured

    source = _read(args)
    rows, spiked = source["rows"], measured.spikes(source["rows"])
    model = costmodel.fit(source["shape"], source["system"], rows, source["gemm"])
    at = _grid(args, rows, model)
    found = _filled(model, at, source)
    for index in (i for i, spike in enumerate(spiked) if spike):
        print(f"left out, a spike: {rows.case(index).slug}", file=sys.stderr)
    if args.output is not None:
        _write(args, found, source)
    elif args.json:
        spikes = [rows.case(i).slug for i, spike in enumerate(spiked) if spike]
        filled = found.to_dict(orient="records")
        print(json.dumps({"schema": 1, "spikes": spikes, "rows": filled}, indent=1))
    else:
        sys.stdout.write(found.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return int(Exit.OK)


def _read(args: argparse.Namespace) -> dict[str, Any]:
    """Rows with what they were measured on: shape, system, gemm, and the table they came from."""
    from dsa_profiler import session
    from dsa_profiler.analysis import measured, systems

    if (args.table / session.MANIFEST).exists():
        return _read_session(args)
    from dsa_profiler.export import module_tables

    table = module_tables.read(args.table)
    phase: Phase = "generation" if table.phase == "generation" else "context"
    groups = measured.of_frame(table.frame, phase)
    keys = [k for k in groups if _wanted(args, k)]
    if len(keys) != 1:
        names = ", ".join("/".join(k) for k in (keys or groups))
        raise UsageError(
            "table-ambiguous",
            f"{args.table.name} holds {len(keys)} tables that match (of {names})",
            "choose one with --model, --gemm and --kv-dtype",
        )
    architecture, gemm, _ = keys[0]
    preset = PRESET_OF.get(FAMILIES.get(architecture, ""), "deepseek-v3.2")
    device = str(table.frame.device.iloc[0]) if "device" in table.frame else ""
    return {
        "rows": groups[keys[0]],
        "shape": load_model(args.model or preset),
        "system": _system(args, [device]),
        "gemm": systems.gemm_of(gemm),
        "key": keys[0],
        "frame": table.frame,
    }


def _read_session(args: argparse.Namespace) -> dict[str, Any]:
    from dsa_profiler.analysis import measured
    from dsa_profiler.cli import source

    with source.opened(args.table) as opened:
        results, manifest = opened.results, opened.session
    groups = measured.of_results(results)
    keys = [k for k in groups if args.mode in (None, k[0]) and args.kv_dtype in (None, k[1])]
    if len(keys) != 1 or manifest is None:
        raise UsageError(
            "table-ambiguous",
            f"the session holds {len(keys)} tables that match",
            "choose one with --mode and --kv-dtype",
        )
    if any(c.timing == "host" for c in results.cases):
        raise InputError(
            "rows-host-timed",
            "these rows were timed on the host: they say nothing about a GPU",
            "record the sweep on a GPU",
        )
    gemm = args.gemm or "bfloat16"
    return {
        "rows": groups[keys[0]],
        "shape": manifest.model,
        "system": _system(args, results.trace.gpus),
        "gemm": gemm,
        "key": (manifest.model.architecture, gemm, keys[0][1]),
        "frame": None,
    }


def _wanted(args: argparse.Namespace, key: tuple[str, str, str]) -> bool:
    if args.model and key[0]:
        shape = load_model(args.model)
        if shape.architecture != key[0]:
            return False
    return args.gemm in (None, key[1]) and args.kv_dtype in (None, key[2])


def _system(args: argparse.Namespace, devices: Any) -> Any:
    from dsa_profiler.analysis import systems

    if args.system:
        return systems.load(args.system)
    for name in devices:
        system = systems.of_device(str(name))
        if system is not None:
            return system
    raise UsageError(
        "system-unknown",
        f"no rates are known for {', '.join(map(str, devices)) or 'an unnamed device'}",
        f"name the GPU with --system: {', '.join(systems.names())}",
    )


def _grid(args: argparse.Namespace, rows: Rows, model: Model) -> Points:
    """The cases to fill: the product of the axes, without what was measured."""
    import numpy as np

    from dsa_profiler.analysis import hull
    from dsa_profiler.analysis.roofline import Points

    axes = [
        _axis(args.batch_sizes, rows.at.batch),
        _axis(args.seq_lens, rows.at.seq),
        np.array(args.prefixes or np.unique(rows.at.prefix), float),
        np.array(args.num_heads or np.unique(rows.at.heads), float),
    ]
    columns = [c.reshape(-1) for c in np.meshgrid(*axes, indexing="ij")]
    at = Points(rows.at.phase, *columns)
    at = at[~hull.measured(model.rows.at, at)]
    if not args.beyond:
        at = at[hull.distance(rows.at, at).sum(axis=1) == 0]
    if not len(at):
        raise UsageError(
            "grid-empty",
            "there is nothing to fill: all of the grid is measured or lies beyond it",
            "give other --batch-sizes, --seq-lens or --num-heads, or --beyond",
        )
    return at


def _axis(asked: tuple[int, ...] | None, measured: Any) -> Any:
    """The values asked for; else the measured ones and one in the middle of each two."""
    import numpy as np

    if asked:
        return np.array(asked, float)
    known = np.unique(measured)
    return np.unique(np.concatenate([known, np.round(np.sqrt(known[:-1] * known[1:]))]))


def _filled(model: Model, at: Points, source: dict[str, Any]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from dsa_profiler.analysis.costmodel import REASONS
    from dsa_profiler.columns import PREDICTED

    found = model.predict(at)
    reasons = np.array(REASONS)[found.reason]
    columns: dict[str, Any] = {
        "phase": at.phase,
        "batch_size": at.batch.astype(int),
        "seq_len": at.seq.astype(int),
        "prefix": at.prefix.astype(int),
        "num_heads": at.heads.astype(int),
        "kv_cache_dtype": source["key"][2],
        "gemm_type": source["key"][1],
        "latency": found.ns / 1e6,
        "low_ms": found.low_ns / 1e6,
        "high_ms": found.high_ns / 1e6,
        "reason": reasons,
        "steps": found.steps,
        "kernel_source": [f"{PREDICTED}_{reason}" for reason in reasons],
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def _write(args: argparse.Namespace, found: pd.DataFrame, source: dict[str, Any]) -> None:
    from dsa_profiler.export import module_tables
    from dsa_profiler.session import write_atomic

    if args.output.suffix != ".parquet":
        text = found.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_atomic(args.output, text)
    elif not args.into_aiconfigurator:
        raise UsageError(
            "predicted-rows-kept-out",
            "aiconfigurator reads parquet and cannot tell a predicted row from a measured one",
            "write a .csv, or ask for it with --into-aiconfigurator",
        )
    else:
        module_tables.write_parquet(_module_rows(found, source), args.output)
    print(args.output)


def _module_rows(found: pd.DataFrame, source: dict[str, Any]) -> pd.DataFrame:
    """The measured rows as they are, and the filled ones in the same columns after them."""
    import pandas as pd

    from dsa_profiler.columns import MODULE_HEADER

    frame = source["frame"]
    if frame is None or "mla_dtype" not in frame:
        raise UsageError(
            "table-not-module",
            "only a table in aiconfigurator's own columns can be filled as one",
            "export the session with --to aiconfigurator first, then fill that table",
        )
    architecture, gemm, kv = source["key"]
    same = (frame.architecture == architecture) & (frame.gemm_type == gemm)
    measured = frame[same & (frame.kv_cache_dtype == kv)]
    filled = pd.concat([measured.iloc[:1]] * len(found), ignore_index=True)
    context = bool((found.phase == "context").all())
    for name in ("batch_size", "num_heads", "latency", "kernel_source"):
        filled[name] = found[name].to_numpy()
    filled["isl"] = found.seq_len.to_numpy() if context else 1
    filled["step"] = found.prefix.to_numpy() if context else found.seq_len.to_numpy()
    whole: pd.DataFrame = pd.concat([measured, filled], ignore_index=True)[list(MODULE_HEADER)]
    return whole
